"""open_clip behind a plain class: pictures → unit vectors; and the vectors that the lake holds.

Beam's RunInference is not in here, since importing it imports torch: a verb with nothing to do must start fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from transforms.errors import UserError, first_line
from transforms.models.devices import in_batches, out_of_memory
from transforms.models.fetched import local_folder
from transforms.models.hub import hub_commit
from transforms.models.parts import damage
from transforms.store.files import is_url, read_parquet
from transforms.store.identity import folder_digest
from transforms.store.lake import Lake

if TYPE_CHECKING:
    import torch

LOCAL_FOLDER = "local-dir:"
"""open_clip's schema for a folder with ``open_clip_config.json`` and weights."""

HUB = "hf-hub:"
"""open_clip's schema for a model on the hub."""

HUB_FILES = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Files of which a CLIP model on the hub has one."""

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
"""How files with weights end."""


@dataclasses.dataclass(frozen=True)
class ClipModel:
    """Which CLIP, and how it is run. Cheap to pickle; ``load`` makes the model.

    Attributes:
        name: open_clip's name of an architecture, hf-hub:owner/name, or a folder in open_clip's format: a local one (with or
            without open_clip's own ``local-dir:`` before it), or a URL of one.
        pretrained: tag of the weights, or a local file; ignored for hf-hub: and for a folder, which have their own.
        device: cpu, cuda or cuda:1.
        batch_size: pictures that go through the model at once.
    """

    name: str
    pretrained: str = ""
    device: str = "cpu"
    batch_size: int = 64

    @functools.cached_property
    def folder(self) -> str | None:
        """The local folder that it is, or the copy here of what a URL names, looked up once a process; or None."""
        if is_url(self.name):
            return local_folder(self.name)
        if self.name.startswith(LOCAL_FOLDER):
            return self.name.removeprefix(LOCAL_FOLDER)
        return self.name if os.path.isdir(self.name) else None

    def identity(self) -> tuple[str, str]:
        """(model, pretrained) as the lake's rows have them: names for the hub's, digests of content for local ones.

        A folder or file that was moved is the same model. UserError where it's not there or not in open_clip's format.
        """
        if self.folder is not None:
            _check_folder(self.folder)
            content = f"sha256:{folder_digest(self.folder)}"
            return content, content
        if self.name.startswith(HUB):
            return self.name, ""
        if os.path.isfile(self.pretrained):
            with open(self.pretrained, "rb") as file:
                return self.name, f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:40]}"
        if os.sep in self.pretrained or self.pretrained.endswith(WEIGHTS):
            raise UserError(f"there is no file {self.pretrained!r}; mend --clip_pretrained: a tag or a file of weights")
        return self.name, self.pretrained

    def check(self) -> None:
        """UserError for what open_clip can't load, as far as that shows before: its name, tag and files, or no network."""
        self.identity()
        if self.folder is not None:
            for name in sorted(os.listdir(self.folder)):
                if name.endswith((".safetensors", ".json")):
                    _refuse_damaged(os.path.join(self.folder, name), "--clip_model")
            return
        if self.name.startswith(HUB):
            hub_commit(self.name.removeprefix(HUB), None, "--clip_model", HUB_FILES)
            return
        _check_name(self)
        if os.path.isfile(self.pretrained):
            _refuse_damaged(self.pretrained, "--clip_pretrained")
            return
        import open_clip

        name = self.name.replace("/", "-")
        found = open_clip.get_pretrained_cfg(name, self.pretrained)
        if not found:
            known = open_clip.list_pretrained_tags_by_model(name)
            raise UserError(
                f"open_clip has no weights {self.pretrained!r} of {self.name!r}; mend --clip_pretrained: "
                f"{'a file of weights' if not known else 'one of ' + ', '.join(known) + ', or a file'}"
            )
        if found.get("hf_hub"):
            model, file = os.path.split(found["hf_hub"])
            hub_commit(model, None, "--clip_pretrained", (*HUB_FILES, file) if file else HUB_FILES)

    def load(self) -> OpenClipEncoder:
        return OpenClipEncoder(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the folder: another machine has a copy of its own.
        return ClipModel, dataclasses.astuple(self)


def _refuse_damaged(path: str, option: str) -> None:
    found = damage(path)
    if found is not None:
        raise UserError(f"the CLIP model's {path!r} {found}, or mend {option}")


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder!r}; mend --clip_model")
    names = os.listdir(folder)
    if "open_clip_config.json" not in names or not any(name.endswith(WEIGHTS) for name in names):
        raise UserError(
            f"the folder {folder!r} is not an open_clip model: it needs open_clip_config.json and weights such as "
            "open_clip_model.safetensors; mend --clip_model"
        )


class OpenClipEncoder:
    """An open_clip model that is loaded: pictures in, unit vectors out.

    Args:
        clip: which, and how.

    Attributes:
        batch_size: pictures that go through the model at once: as many as ``clip`` says, or as the device has memory for.
        preprocessing: the transform between picture and model, as open_clip prints it.

    Raises:
        UserError: where the model can't be loaded, or the device is not there.
    """

    def __init__(self, clip: ClipModel):
        import torch

        if clip.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--device {clip.device} was asked for and there is no GPU here; name --device cpu or another machine"
            )
        self.clip = clip
        self.batch_size = clip.batch_size
        self._model, self._preprocess = _load(clip)
        # Functions print with their address in memory, which says nothing and differs from process to process.
        self.preprocessing = " ".join(re.sub(r" at 0x[0-9a-f]+", "", str(self._preprocess)).split())

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """(3, side, side) float32, what the model takes of one RGB picture."""
        return self._preprocess(picture)

    def encode_prepared(self, prepared: Sequence[torch.Tensor]) -> np.ndarray:
        """As ``encode``, of what ``prepare`` gave."""
        import torch

        too_little = f"out of memory on {self.clip.device} with a single picture in CLIP; name another device"
        with torch.inference_mode():
            vectors = [found for _, found in in_batches(self, prepared, self._features, too_little)]
        return unit_norm(np.concatenate(vectors)) if vectors else np.empty((0, 0), np.float32)

    def _features(self, prepared: Sequence[torch.Tensor], size: int) -> np.ndarray:
        """(n, d), of at most ``size`` pictures."""
        return self._filled(prepared, size, self._model.encode_image)

    def _filled(self, items: Sequence[torch.Tensor], size: int, tower: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """(n, d), what one of the model's towers makes of at most ``size`` items."""
        import torch

        batch = torch.stack(list(items))
        # Filled up to the full size: kernels are chosen by shape, and a last item must come out the same
        # however many came before it.
        padded = torch.zeros((size, *batch.shape[1:]), dtype=batch.dtype)
        padded[: len(batch)] = batch
        features = tower(padded.to(self.clip.device))
        return features[: len(batch)].float().cpu().numpy()

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures → (n, d) float32 of unit norm. A row is NaN where the model's vector has no direction."""
        return self.encode_prepared([self.prepare(picture) for picture in pictures])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 of unit norm, of the space of the pictures. A row is NaN where it has no direction.

        UserError where open_clip has no tokenizer for the model, or the model no text tower.
        """
        import open_clip
        import torch

        too_little = f"out of memory on {self.clip.device} with a single text in CLIP; name another device"
        try:
            tokens = list(open_clip.get_tokenizer(_name(self.clip))(list(texts)))
            with torch.inference_mode():
                features = [found for _, found in in_batches(self, tokens, self._text_features, too_little)]
        except UserError:
            raise
        except Exception as error:  # as _load has it
            raise UserError(
                f"the CLIP model {self.clip.name!r} makes no vectors of texts ({first_line(error)}); embed with one that does"
            ) from error
        return unit_norm(np.concatenate(features)) if features else np.empty((0, 0), np.float32)

    def _text_features(self, tokens: Sequence[torch.Tensor], size: int) -> np.ndarray:
        """(n, d), of the tokens of at most ``size`` texts."""
        return self._filled(tokens, size, self._model.encode_text)


def _name(clip: ClipModel) -> str:
    """What open_clip calls the model."""
    return clip.name if clip.folder is None else LOCAL_FOLDER + clip.folder


def _load(clip: ClipModel) -> tuple[Any, Any]:
    """(model, preprocessing), ready. UserError, in one line, for whatever keeps open_clip from loading it."""
    import open_clip

    name = _name(clip)
    if clip.folder is not None:
        _check_folder(clip.folder)
    elif not name.startswith(HUB):
        _check_name(clip)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            name, clip.pretrained if clip.folder is None else None, device=clip.device
        )
    # open_clip and the hub below it raise nearly anything: no network, no such tag, weights of another shape.
    except Exception as error:
        if out_of_memory(error):
            raise UserError(
                f"the CLIP model {clip.name!r} doesn't fit into the memory of {clip.device}; name another device"
            ) from error
        raise UserError(
            f"open_clip cannot load {clip.name!r} with weights {clip.pretrained!r} ({first_line(error)}); without a network, "
            "name a local folder with --clip_model or a local file with --clip_pretrained"
        ) from error
    return model.eval(), preprocess


def _check_name(clip: ClipModel) -> None:
    """UserError unless it names one of open_clip's architectures, and weights."""
    import open_clip

    known = open_clip.list_models()
    if clip.name.replace("/", "-") not in known:
        close = difflib.get_close_matches(clip.name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"--clip_model {clip.name!r} is neither a folder nor one of open_clip's models{hint}")
    if not clip.pretrained:
        raise UserError(f"--clip_model {clip.name!r} needs weights: --clip_pretrained names them, by tag or file")


def unit_norm(vectors: np.ndarray) -> np.ndarray:
    """(n, d) → (n, d) float32 of unit l2 norm; NaN where a row is zero or not finite."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        result = (wide / norms).astype(np.float32)
    result[~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))] = np.nan
    return result


# -- reading ----------------------------------------------------------------------------------------------------------


def read_vectors(lake: Lake, embed_snapshot: str, numbers: Sequence[int], role: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of some parts of ``embeddings`` that are a success.

    Args:
        lake: the lake.
        embed_snapshot: whose ``embeddings``.
        numbers: parts.
        role: training or control.

    Returns:
        (n,) object array of sample_ids, and (n, d) float32; in the order of the parts and their rows.
    """
    ids, vectors = [], []
    paths = lake.paths("embeddings", embed_snapshot)
    for number in numbers:
        table = read_parquet(paths[number], ["sample_id", "role", "status", "vector"])
        table = table.filter((pc.field("role") == role) & (pc.field("status") == "success"))
        if table.num_rows:
            ids.append(table["sample_id"].to_numpy(zero_copy_only=False))
            vectors.append(table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1))
    if not ids:
        return np.empty(0, object), np.empty((0, 0), np.float32)
    return np.concatenate(ids), np.concatenate(vectors)
