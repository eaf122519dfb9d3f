"""The exceptions that a caller may want to catch: one base class, one class per exit code."""

from __future__ import annotations


class AttnqError(Exception):
    """Something the user can mend. The message is one line that names the file, node or option."""

    exit_code = 2


class InvalidScheme(AttnqError):
    """A quantization scheme whose fields do not fit together."""


class InvalidModel(AttnqError):
    """A file that is not an ONNX model, is damaged, or uses something that is not supported."""


class InvalidData(AttnqError):
    """Sample inputs that do not fit the model's inputs."""


class CannotWrite(AttnqError):
    """An output that cannot be written where it was asked for."""


class InvalidPlan(AttnqError):
    """A plan that does not belong to the model or does not cover its sites."""


class AlreadyRewritten(AttnqError):
    """The model carries a rewrite already; a second one would quantize quantized values."""


class CannotRevert(AttnqError):
    """A rewritten model whose original graph cannot be given back."""


class MissingExtra(AttnqError):
    """An optional package that is needed here is not installed, or in a version that does not fit."""


class ExportFailed(AttnqError):
    """A model could not be exported to ONNX, or its export computes something else than PyTorch."""


class MissingLibrary(AttnqError):
    """The native library was asked for, but was not built or does not load."""


class NothingToRewrite(AttnqError):
    """No attention was found, or every site was excluded."""

    exit_code = 3


class VerificationFailed(AttnqError):
    """The rewritten model does not do what it should, or deviates more than was allowed."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    r"""What an error of another library says, in one line that can be shown: no more than 300 characters.

    >>> first_line(ValueError("no such axis\nat node 3"))
    'no such axis'
    >>> first_line(KeyError())
    'KeyError'
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return "".join(character if character.isprintable() else "?" for character in line)
