"""The trained weights of a row, whatever form the training has left them in."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

# form -> the folder of a run directory, and the file without which transformers or PEFT load nothing
FORMS = {"adapter": ("adapters", "adapter_config.json"), "model": ("models", "config.json")}


@dataclass(frozen=True)
class Trained:
    """A folder with a LoRA adapter in PEFT format, or (`whole`) with all weights of a model."""

    folder: Path
    whole: bool

    def as_adapter(self) -> Path:
        """The folder, for who can take nothing but an adapter. InputError: it holds a whole model."""
        if self.whole:
            why = "holds a whole model, and only an adapter can be put on a model that is there"
            raise InputError(f"{self.folder}: {why}; use policy.tuning=lora, or policy.kind=local to play it")
        return self.folder

    def hash(self) -> str:
        """SHA-256 of the weights, to tell trainings apart."""
        stats = [(file, file.stat()) for file in sorted(self.folder.glob("*.safetensors"))]
        digests = [_hash_file(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        return digests[0] if len(digests) == 1 else storage.sha256(*(d.encode() for d in digests))


def find_trained(run_dir: Path, name: str) -> Trained | None:
    """What a run directory holds under adapters/<name> (LoRA) or models/<name> (full tuning); None: neither.
    InputError: both, so that nobody knows which is meant."""
    found = []
    for form, (home, sign) in FORMS.items():
        folder = run_dir / home / name
        if (folder / sign).is_file() and any(folder.glob("*.safetensors")):
            found.append(Trained(folder, whole=form == "model"))
    if len(found) > 1:
        raise InputError(f"{run_dir}: adapters/{name} and models/{name} are both there; remove one of them")
    return found[0] if found else None


def load_trained(run_dir: Path, name: str, wanted: str) -> Trained:
    """As `find_trained`. InputError: neither is there; `wanted` says who asks and what to do."""
    found = find_trained(run_dir, name)
    if found is None:
        raise InputError(f"{run_dir}: neither adapters/{name} nor models/{name} is there, and {wanted}")
    return found


@cache
def _hash_file(file: Path, size: int, changed_ns: int) -> str:
    """A whole model's file has gigabytes: it is read once while it stays what it is."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
