// Scores that are first computed roughly, for schemes that want nothing of a score but its code. It is known how far a
// rough score can be off; those so near an edge that this could change their code are computed again in float32. So the
// codes are those of float32 products. rounded_products.h and amx_products.h have the rough ones.
#pragma once

#include "vector_products.h"

namespace onnx_attnq {
namespace {

// The largest norm of a vector that is multiplied roughly: its products are far from what float32 cannot hold, and
// errors of less than 1e-19, whose squares are lost, do not matter beside it.
constexpr float kLargestRough = 1e12f;
// With a larger error, in steps of the scheme, too many of the kept scores would be computed again.
constexpr float kMostSteps = 0.01f;
// One score of so many may be computed again by itself: with more, tiles of all scores are faster.
constexpr Index kMostDoubtful = 16;

// A panel's largest norms (Euclidean, of a key): of the key itself, and of what rough products leave out of it.
struct KeyNorms {
  float whole;         // NaN where one of its numbers is
  float second, rest;  // one is multiplied by the other operand's `second`, one lost
  float in_range;      // whether the panel can be multiplied roughly at all

  static const KeyNorms& of(const Attention& a, const float* panel) {
    return *reinterpret_cast<const KeyNorms*>(panel + panel_norms(a));
  }
  void store(const Attention& a, float* panel) const { *reinterpret_cast<KeyNorms*>(panel + panel_norms(a)) = *this; }
};
static_assert(sizeof(KeyNorms) <= kLanes * sizeof(float), "the room for it in a panel");

class Screening {
 public:
  // Whether codes are all that is wanted. What pruned keys share is the sum of their levels; of these, those of rough
  // scores are good enough: a score is off by at most kMostSteps, and errors of many keys cancel.
  static bool suits(const Attention& a) {
    const Form& f = a.form;
    const bool plain = a.softcap == 0 && a.sinks == nullptr && a.key.storage == Storage::kFloat;
    return plain && f.reference == Reference::kRowMax && f.spacing == Spacing::kLog && f.normalize == Normalize::kUnit;
  }

  static Index scratch(const Attention& a, Index rows) { return layout_of(a, rows).total; }

  // `queries`: the task's rows, times the scale, query_row apart.
  Screening(const Task& task, Index rows, const float* queries, Index query_row, float* scratch)
      : t_(task),
        a_(task.a),
        layout_(layout_of(task.a, rows)),
        scratch_(scratch),
        queries_(queries),
        query_row_(query_row) {}

  // The largest norms of a task's panels, of those that can be multiplied roughly; these lie `panel` floats apart.
  static KeyNorms largest(const Task& task, Index panel) {
    KeyNorms most{};
    for (Index p = 0; p < task.panels(); ++p) {
      const KeyNorms& one = KeyNorms::of(task.a, task.packed_keys + p * panel);
      if (one.in_range == 0.0f) continue;
      most.whole = one.whole > most.whole ? one.whole : most.whole;
      most.second = one.second > most.second ? one.second : most.second;
      most.rest = one.rest > most.rest ? one.rest : most.rest;
    }
    return most;
  }

  // How far the scores of each row can be off; 0 where they are not rough.
  float* errors() { return scratch_ + layout_.errors; }

  // Whether rough scores of that error are worth a second look at some.
  bool pays(Index row) {
    const Table& table = t_.table_of(row);
    // Where the maximum is near an edge, as with rounding `floor`, every row would be in doubt; where even the maximum
    // is pruned, there is nothing to look for.
    const float past_edge = table.offset - static_cast<float>(static_cast<Index>(table.offset));
    const bool peak_in_code =
        past_edge > 0.25f && past_edge < 0.75f && table.offset > 1 && table.offset < table.levels + 1;
    return errors()[row] * table.inverse_step <= kMostSteps && peak_in_code;
  }

  // What weighing has to know of a context band's row r, with this maximum; `near` is 0 where float32 would not do
  // better than the rough scores.
  Rough rough(Index r, Index row, float peak) {
    const Table& table = t_.table_of(row);
    const float apart = 2 * errors()[row];  // of the difference of two scores
    // Scores that float32 itself rounds more coarsely, behind a low mask, would not be better.
    const bool helps = apart > __builtin_fabsf(peak) * 0x1p-24f;
    // What float32 loses of a position comes on top.
    const float largest = table.offset + (a_.form.shares ? static_cast<float>(table.deepest) : 0.0f);
    const float near = helps ? apart * table.inverse_step + largest * 2.5e-7f : 0;
    return {near, KeySet(sets() + set_of(r)), KeySet(sets() + set_of(kContextRows + r))};
  }

  // Rows that lie one after the other, weighed with rough scores.
  struct Band {
    Index row, count, padded;
    const Rough* rough;  // of each row
    float* weights;
    Index weight_row;
  };

  // Computes scores again that may be beyond an edge, with the maxima of their rows, and corrects their weights and the
  // rows' sums of these; keys that this prunes stay listed. Returns false where all scores are better computed again:
  // too many are in doubt (of equal keys, all or none), or a row's maximum is below the floor, so that no weight is
  // sure to be large beside the changes.
  bool settle(const Band& band, Weighed* weighed, Shared* shared) {
    Score* const end = find_doubtful(band);
    if (end == nullptr) return false;
    for (Score* s = scores(); s != end; ++s) s->score = exact_score(band.row + s->row, s->key);
    for (const Score* first = scores(); first != end;) {
      const std::int32_t r = first->row;
      const Score* last = first;
      float peak = a_.row_max_floor;
      for (; last != end && last->row == r; ++last) peak = last->score > peak ? last->score : peak;
      if (!(peak > a_.row_max_floor)) return false;
      weighed[r].divisor += settle_row(band, r, peak, first, last, shared[r].tail);
      first = last;
    }
    return true;
  }

 private:
  static constexpr Index kContextRows = VectorProducts::kContextRows;

  struct Layout {
    int set_bits;  // the power of two that has room for a set
    Index errors, sets, places, scores, total;
  };
  // A score that is computed again.
  struct Score {
    std::int32_t row, key;  // row of the band
    float score;
  };
  static constexpr Index kScoreFloats = sizeof(Score) / sizeof(float);

  static Layout layout_of(const Attention& a, Index rows) {
    Layout l;
    Room room;
    l.errors = room.take(round_up(rows, kLanes));
    const Index padded = panel_count(a) * kTileKeys;
    l.set_bits = 0;
    while (Index{1} << l.set_bits < KeySet::integers(padded)) ++l.set_bits;
    l.sets = room.take(2 * kContextRows << l.set_bits);
    l.places = room.take(2 * kContextRows * KeySet::integers(padded) + kLanes);
    // Some more: whether these are too many is seen after up to kLanes of them.
    l.scores = room.take((kContextRows * padded / kMostDoubtful + kLanes) * kScoreFloats);
    l.total = room.total();
    return l;
  }

  Score* scores() { return reinterpret_cast<Score*>(scratch_ + layout_.scores); }

  // The sets of a band: doubtful keys of each row, then highest keys of each.
  std::int32_t* sets() { return reinterpret_cast<std::int32_t*>(scratch_ + layout_.sets); }
  Index set_of(Index r) const { return r << layout_.set_bits; }

  // Fills `scores` with those in doubt. Returns their end, null if these are too many.
  Score* find_doubtful(const Band& band) {
    // First the integers that have a bit, without a branch that depends on them: where these are is random.
    auto* const places = reinterpret_cast<std::int32_t*>(scratch_ + layout_.places);
    Index count = 0;
    for (Index r = 0; r < band.count; ++r) {
      const Rough& rough = band.rough[r];
      if (rough.near == 0) continue;
      const Index doubtful = rough.doubtful.list(band.padded, set_of(r), places + count);
      const Index highest = rough.highest.list(band.padded, set_of(kContextRows + r), places + count + doubtful);
      count += doubtful == 0 ? 0 : doubtful + highest;
    }
    Score* next = scores();
    const Score* const most = next + band.count * band.padded / kMostDoubtful;
    const std::int32_t in_set = (1 << layout_.set_bits) - 1;
    for (const std::int32_t* place = places; place != places + count; ++place) {
      const std::int32_t set = *place >> layout_.set_bits, first_key = (*place & in_set) * kLanes;
      const std::int32_t row = set < kContextRows ? set : set - static_cast<std::int32_t>(kContextRows);
      auto left = static_cast<unsigned>(sets()[*place]);
      for (; left != 0; left &= left - 1) *next++ = {row, first_key + __builtin_ctz(left), 0.0f};
      if (next > most) return nullptr;
    }
    // The keys are in no near cache any more: all are prefetched before the first is used.
    for (Score* s = scores(); a_.key_strides.row == 1 && s != next; ++s) {
      prefetch(t_.key + s->key * a_.key_strides.column, a_.depth);
    }
    return next;
  }

  // All scores of a row that were computed again, and the maximum. Returns the change of its sum; what is pruned now is
  // added to the tail.
  float settle_row(const Band& band, Index r, float peak, const Score* first, const Score* last, float& tail) {
    const Table& table = t_.table_of(band.row + r);
    float* const weights = band.weights + r * band.weight_row;
    float change = 0;
    for (const Score* s = first; s != last; ++s) {
      const float position = (s->score - peak) * table.inverse_step + table.offset;
      // Always a valid code: of keys out of range, sums in another order may differ by anything, or be NaN.
      const bool kept = position >= 1;
      const float code = position < table.levels ? position : table.levels;
      const float weight = kept ? table.level[static_cast<Index>(code)] : 0.0f;
      if (!kept && a_.form.shares) tail += weights[s->key] == 0 ? 0 : table.continued[table.deepest];
      change += weight - weights[s->key];
      weights[s->key] = weight;
    }
    return change;
  }

  float exact_score(Index row, Index key) {
    const float* const q = queries_ + row * query_row_;
    const float* const k = t_.key.floats() + key * a_.key_strides.column;
    float score = 0;
    if (a_.key_strides.row == 1) {
      Float sums[1] = {};
      multiply_vectors<1, Storage::kFloat>(a_.depth, q, 0, {{k, Storage::kFloat}}, sums);
      score = Simd::sum(sums[0]);
    } else {
      for (Index d = 0; d < a_.depth; ++d) score += q[d] * k[d * a_.key_strides.row];
    }
    return t_.mask == nullptr ? score : score + t_.mask_of(row)[key * a_.mask_strides.column];
  }

  const Task& t_;
  const Attention& a_;
  const Layout layout_;
  float* const scratch_;
  const float* const queries_;
  const Index query_row_;
};

}  // namespace
}  // namespace onnx_attnq
