"""The six published CLUE models: where they are, how large, and which heads they have.

Names, addresses and the table's "published" column are those of the original's README; the counts
are computed from the sizes (a test does it again).
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clue_jax.archives import unpack
from clue_jax.config import PRESETS, ModelConfig
from clue_jax.convert import source
from clue_jax.convert.loaded import LoadedModel
from clue_jax.convert.torch_file import read_torch_file
from clue_jax.convert.weights import CANDIDATES, read_safetensors
from clue_jax.errors import UserError
from clue_jax.fetch import NotThere, cache_directory, exclusive, fetch, join
from clue_jax.files import atomic_directory, read_object, sha256, write_json
from clue_jax.text.wordpiece import read_vocabulary

Origin = Literal["tf", "hf"]
VOCABULARY = 8021
RECORD = "download.json"
_TF_ADDRESS = "https://storage.googleapis.com/cluebenchmark/pretrained_models/{name}.zip"
_HF_FILES = ("config.json", "vocab.txt")
_OPTIONAL_HF_FILES = ("tokenizer_config.json",)


@dataclass(frozen=True)
class ZooModel:
    """A published model.

    Attributes:
      name: as in the original's table.
      hf_id: its repository on the Hugging Face hub.
      preset: of `clue_jax.config.PRESETS`.
      rows: of the released word embedding; more than the 8,021 vocabulary lines are dead.
      parameters: of encoder and pooler, with 8,021 rows.
      released: the same with the rows as released.
      published: the number in the original's table.
      pair: made for sentence pairs.
    """

    name: str
    hf_id: str
    preset: str
    rows: int
    parameters: int
    released: int
    published: str
    pair: bool = False

    @property
    def tf_address(self) -> str:
        """The zip with the original's checkpoint."""
        return _TF_ADDRESS.format(name=self.name)

    @property
    def config(self) -> ModelConfig:
        """The sizes, with the vocabulary's own number of rows."""
        return PRESETS[self.preset]

    def heads(self, origin: Origin) -> dict[str, str]:
        """What is known of the heads: the TF checkpoints were published without `cls/*`, and the
        masked-LM weights of the Hugging Face files were never trained."""
        return {} if origin == "tf" else {"masked_lm": "fresh", "next_sentence": "fresh"}


ZOO = {
    model.name: model
    for model in (
        ZooModel(
            "RoBERTa-tiny-clue", "clue/roberta_chinese_clue_tiny",
            "tiny", 8021, 7_449_936, 7_449_936, "7.5M",
        ),
        ZooModel(
            "RoBERTa-tiny-pair", "clue/roberta_chinese_pair_tiny",
            "tiny", 8021, 7_449_936, 7_449_936, "7.5M", pair=True,
        ),
        ZooModel(
            "RoBERTa-tiny3L768-clue", "clue/roberta_chinese_3L768_clue_tiny",
            "tiny3l768", 8021, 28_410_624, 28_410_624, "38M",
        ),
        ZooModel(
            "RoBERTa-tiny3L312-clue", "clue/roberta_chinese_3L312_clue_tiny",
            "tiny3l312", 8021, 6_277_752, 6_277_752, "<7.5M",
        ),
        ZooModel(
            "RoBERTa-large-clue", "clue/roberta_chinese_clue_large",
            "large", 21128, 312_100_864, 325_522_432, "290M",
        ),
        ZooModel(
            "RoBERTa-large-pair", "clue/roberta_chinese_pair_large",
            "large", 21128, 312_100_864, 325_522_432, "290M", pair=True,
        ),
    )
}  # fmt: skip


def find_model(name: str) -> ZooModel | None:
    """The model of a name or a Hugging Face id, upper and lower case alike."""
    wanted = name.lower()
    return next((m for m in ZOO.values() if wanted in (m.name.lower(), m.hf_id.lower())), None)


def download(
    name: str,
    origin: Origin = "tf",
    output: str | os.PathLike | None = None,
    mirror: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Brings a model's files to a folder, unless they are there.

    Args:
      name: see `find_model`.
      origin: "tf" for the original's zip, "hf" for the files on the Hugging Face hub (`HF_ENDPOINT`
        names another address of the hub).
      output: default a folder in the cache.
      mirror: a folder or URL that holds `NAME.zip`, or for "hf" the repository's files, under its
        id or directly.

    Returns:
      The folder, and the record kept in it: for each file fetched its address, size and SHA-256.

    Raises:
      UserError: for an unknown name, or a download that fails or is not what it should be.
    """
    model = find_model(name)
    if model is None:
        raise UserError(f"unknown model {name!r}; known: {', '.join(ZOO)}")
    folder = Path(output) if output else cache_directory() / "models" / f"{model.name}-{origin}"
    folder = folder.absolute().resolve()
    with exclusive(folder):  # another process may be at it
        return _download(model, origin, folder, mirror)


def _download(
    model: ZooModel, origin: Origin, folder: Path, mirror: str | None
) -> tuple[Path, dict[str, Any]]:
    if (folder / RECORD).exists():
        record = read_object(folder / RECORD)
        if (record.get("model"), record.get("origin")) != (model.name, origin):
            raise UserError(f"{folder}: holds another download; choose another --output")
        _check_cached(folder, record)
        return folder, record | {"cached": True}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; choose another --output")
    record = {"model": model.name, "origin": origin, "fetched": []}
    if origin == "tf":
        _fetch_tf(model, folder, mirror, record)
    else:
        _fetch_hf(model, folder, mirror, record)
    return folder, record | {"cached": False}


def _finish(folder: Path, files: list[str], record: dict[str, Any]) -> None:
    """Writes the record of a folder that is complete otherwise."""
    record["files"] = {
        name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in sorted(files)
    }
    write_json(folder / RECORD, record)


def load(name: str, origin: Origin | None = None, **options: Any) -> LoadedModel:
    """A published model, downloaded unless it is there, its dead vocabulary rows cut off.

    Args:
      name: see `find_model`.
      origin: None takes what is in the cache, else "tf".
      options: see `clue_jax.convert.source.load`.
    """
    model = find_model(name)
    if origin is None:
        cached = cache_directory() / "models" / f"{model.name if model else name}-hf" / RECORD
        origin = "hf" if cached.exists() else "tf"
    folder, _ = download(name, origin)
    return read(folder, **{"crop": options.get("pad") is None} | options)


def read(path: str | os.PathLike, **options: Any) -> LoadedModel:
    """A model from any form; of a folder that `download` made, what is known of it is applied.

    Args:
      path, options: see `clue_jax.convert.source.load`.
    """
    place = Path(path)
    record_file = (place if place.is_dir() else place.parent) / RECORD
    record = read_object(record_file) if record_file.is_file() else {}
    model = ZOO.get(str(record.get("model")))
    if model is None or record.get("origin") not in ("tf", "hf"):
        return source.load(path, **options)
    origin: Origin = record["origin"]
    # The Hugging Face config.json of these says "gelu", but they were trained with the tanh form.
    loaded = source.load(path, **options | {"gelu": options.get("gelu") or "tanh"})
    heads = loaded.info["heads"]
    known = {head: s for head, s in model.heads(origin).items() if heads[head] != "missing"}
    info = {**loaded.info, "heads": heads | known, "source": f"{model.name}, {origin} files"}
    return replace(loaded, info=info)


def _check_cached(folder: Path, record: dict[str, Any]) -> None:
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / RECORD}: damaged; remove {folder} and download again")
    for name, known in files.items():
        file = folder / name
        if not isinstance(known, dict) or not file.is_file() or sha256(file) != known.get("sha256"):
            raise UserError(
                f"{file}: missing or not as it was downloaded; remove {folder} and download again"
            )


def _fetch_tf(model: ZooModel, folder: Path, mirror: str | None, record: dict[str, Any]) -> None:
    address = join(mirror, f"{model.name}.zip") if mirror else model.tf_address
    # Beside the folder, so that a cut download is found again by the same command.
    archive = folder.parent / f".{folder.name}.zip"
    fetched = fetch(address, archive, key=model.tf_address)
    record["fetched"].append({"address": address, "size": fetched.size, "sha256": fetched.sha256})
    unpack(archive, folder, lambda unpacked, files: _finish(unpacked, files, record))
    archive.unlink()


def _fetch_hf(model: ZooModel, folder: Path, mirror: str | None, record: dict[str, Any]) -> None:
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    base = f"{hub}/{model.hf_id}/resolve/main"
    places = [base] if mirror is None else [join(mirror, model.hf_id), mirror]
    aside = folder.parent / f".{folder.name}.files"  # a cut download is found again here
    weights = [name for name in CANDIDATES if not name.endswith(".json")]

    def get(*names: str) -> str | None:
        for place in places:
            for name in names:
                try:
                    key = f"https://huggingface.co/{model.hf_id}/{name}"
                    check = functools.partial(_check_file, model, aside, name)
                    fetched = fetch(join(place, name), aside / name, key=key, check=check)
                except NotThere:
                    continue
                entry = {"address": join(place, name), "size": fetched.size}
                record["fetched"].append(entry | {"sha256": fetched.sha256})
                return name
        return None

    files = [get(name) for name in _HF_FILES] + [get(*weights)]
    wanted = [*_HF_FILES, " or ".join(weights)]
    missing = [name for name, got in zip(wanted, files, strict=True) if got is None]
    if missing:
        raise NotThere(f"{places[0]}: has no {', '.join(missing)}")
    files += [name for name in map(get, _OPTIONAL_HF_FILES) if name]
    with atomic_directory(folder) as complete:
        for name in files:
            (aside / name).replace(complete / name)
        _finish(complete, files, record)
    shutil.rmtree(aside)  # a cut download of another kind of weights may be left in it


def _check_file(model: ZooModel, folder: Path, name: str, part: Path) -> None:
    """Whether what arrived under a name can be that file: an answer may end too early, or be an
    error in JSON.

    Raises:
      UserError: if it cannot.
    """
    if name == "config.json":
        ModelConfig.from_hugging_face(part)
    elif name == "vocab.txt":
        lines = len(read_vocabulary(part))
        rows = ModelConfig.from_hugging_face(folder / "config.json").vocab_size
        if rows == model.rows and lines != VOCABULARY:
            raise UserError(f"{part}: has {lines} lines, expected {VOCABULARY}")
    elif name.endswith(".safetensors"):
        read_safetensors(part)
    elif name.endswith(".bin"):
        read_torch_file(part)
    else:
        read_object(part)
