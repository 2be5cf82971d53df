"""Models that were not trained here: of each kind a real one, and what is no model."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import save_random_pipeline
from transforms.errors import UserError
from transforms.models import brought, unconditional
from transforms.models.brought import FinishedPictures, PipelinePictures, TorchScriptPictures
from transforms.models.configuration import BroughtModel, Configuration, TrainingSet
from transforms.models.training import begin


def unet(**more):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    given = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4} | more
    given |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    return UNet2DModel(**given)


def ddim():
    from diffusers import DDIMPipeline, DDIMScheduler

    return DDIMPipeline(unet(), DDIMScheduler())


def consistency():
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    return ConsistencyModelPipeline(unet(num_class_embeds=3), CMStochasticIterativeScheduler())


def transformer():
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return DiTPipeline(network, autoencoder, DDIMScheduler())


@pytest.mark.parametrize(("make", "classes"), [(ddim, 0), (consistency, 3), (transformer, 1000)])
def test_a_pipeline_of_diffusers(tmp_path, make, classes):
    make().save_pretrained(tmp_path / "model")
    model = brought.bring(BroughtModel(str(tmp_path / "model")), "cpu")
    assert isinstance(model, PipelinePictures)
    assert (model.classes, model.shape) == (classes, (3, 8, 8))
    labels = [1, 2, 1] if classes else None
    together = unconditional.as_pictures(model.make([5, 6, 7], labels, 2)).astype(int)
    assert together.shape == (3, 8, 8, 3) and together.std() > 0
    alone = unconditional.as_pictures(model.make([6], labels and [2], 2)).astype(int)
    assert np.abs(alone[0] - together[1]).max() <= 1


def test_a_diffusion_model_in_pixels_is_known_whole(tmp_path):
    """So that its losses can be asked for as well."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "model")
    model = brought.bring(BroughtModel(str(tmp_path / "model")), "cpu")
    assert isinstance(model, unconditional.DiffusionPictures) and model.shape == (3, 8, 8)


def test_a_gan_that_was_trained_here(tmp_path):
    data = TrainingSet(np.zeros((4, 8, 8, 3), np.uint8), np.ones(4, int))
    for name, content in begin(Configuration(family="gan", images=4, width=8), data, "cpu").files().items():
        (tmp_path / name).write_bytes(content)
    assert isinstance(brought.bring(BroughtModel(str(tmp_path)), "cpu"), unconditional.GanPictures)


def test_a_pipeline_that_wants_prompts_is_for_another_verb(tmp_path):
    folder = tmp_path / "model"
    save_random_pipeline(str(folder))
    with pytest.raises(UserError, match="makes no pictures without prompts; audit it by 'eidetic audit --model'"):
        brought.bring(BroughtModel(str(folder)), "cpu")


class Generator(torch.nn.Module):
    def __init__(self, latent: int, told: bool):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(latent, 3 * 16 * 16)
        self.told = told

    def forward(self, numbers: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        made = self.layer(numbers).view(-1, 3, 16, 16)
        return made if classes is None else made + classes.view(-1, 1, 1, 1)


@pytest.mark.parametrize("classes", [0, 4])
def test_a_generator_in_torchscript(tmp_path, classes):
    path = str(tmp_path / "generator.pt")
    torch.jit.script(Generator(12, bool(classes))).save(path)
    model = brought.bring(BroughtModel(path, latent=12, classes=classes), "cpu")
    assert isinstance(model, TorchScriptPictures) and model.shape == (3, 16, 16)
    labels = [0, 3] if classes else None
    made = model.make([1, 2], labels)
    assert made.shape == (2, 16, 16, 3) and 0 <= made.min() < made.max() <= 1
    assert np.allclose(model.make([2], labels and [3])[0], made[1], atol=1e-6)
    with pytest.raises(UserError, match=r"takes no \(1, 13\) numbers.*mend latent and classes"):
        brought.bring(BroughtModel(path, latent=13, classes=classes), "cpu")


def test_a_file_that_is_no_torchscript(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no TorchScript file"):
        brought.bring(BroughtModel(str(tmp_path / "model.pt")), "cpu")


def test_finished_pictures_in_files_and_arrays(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    (tmp_path / "b").mkdir()
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    np.savez(tmp_path / "b" / "many.npz", pictures[1:4])
    np.save(tmp_path / "c.npy", pictures[4:])
    (tmp_path / "d.png").write_bytes(b"broken")
    (tmp_path / ".hidden.png").write_bytes(b"")
    model = brought.bring(BroughtModel(str(tmp_path)), "cpu")
    assert isinstance(model, FinishedPictures) and (model.count, model.shape) == (6, (3, 8, 8))
    *found, broken = model.take(range(6))
    assert np.array_equal(np.stack(found), pictures)
    assert isinstance(broken, str) and broken.startswith("d.png: ")


@pytest.mark.parametrize("content", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8), np.uint8)])
def test_an_array_that_is_no_pictures(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(UserError, match=r"a.npy' is .*, expected uint8 \(N, H, W, 3\)"):
        brought.bring(BroughtModel(str(tmp_path)), "cpu")


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "read.me").write_text("nothing")
    with pytest.raises(UserError, match="has no picture that can be read, and is no model"):
        brought.bring(BroughtModel(str(tmp_path)), "cpu")


def test_an_object_of_python(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import numpy as np\n"
        "class Grey:\n"
        "    shape, classes = (3, 8, 8), 0\n"
        "    def __init__(self, device): self.device = device\n"
        "    def make(self, seeds, labels, steps, sampler):\n"
        "        return np.full((len(seeds), 8, 8, 3), 128, np.uint8)\n"
        "one = Grey('none')\n"
        "half = 3\n"
        "def nothing(): return object()\n"
        "def breaks(): return 1 / 0\n"
        "class Flat(Grey): shape = (8, 8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    assert brought.bring(BroughtModel("my_models:Grey"), "cpu").device == "cpu"
    assert brought.bring(BroughtModel("my_models:one"), "cpu").device == "none"
    with pytest.raises(UserError, match="'my_models:nothing' lacks make, shape, classes; it needs make"):
        brought.bring(BroughtModel("my_models:nothing"), "cpu")
    with pytest.raises(UserError, match="'my_models:half' is 3, expected a model, or a function that makes one"):
        brought.bring(BroughtModel("my_models:half"), "cpu")
    with pytest.raises(UserError, match=r"'my_models:breaks' makes no model \(ZeroDivisionError: division by zero\)"):
        brought.bring(BroughtModel("my_models:breaks"), "cpu")
    with pytest.raises(UserError, match=r"'my_models:Flat' has the shape \(8, 8\), expected \(3, H, W\)"):
        brought.bring(BroughtModel("my_models:Flat"), "cpu")
    (tmp_path / "my_broken_models.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"'my_broken_models:one' can't be imported \(ZeroDivisionError"):
        brought.bring(BroughtModel("my_broken_models:one"), "cpu")
    with pytest.raises(UserError, match="'my_models:absent' can't be imported"):
        brought.bring(BroughtModel("my_models:absent"), "cpu")


@pytest.mark.parametrize("place", ["nowhere", "no/where", "a b:c", "a:", ":b"])
def test_what_is_nothing(place):
    with pytest.raises(UserError, match=r"there is no model .*; expected a folder as diffusers writes it"):
        brought.bring(BroughtModel(place), "cpu")
    with pytest.raises(UserError, match="there is no model"):
        brought.revision(BroughtModel(place))


def test_a_revision_is_of_the_content(tmp_path):
    ddim().save_pretrained(tmp_path / "model")
    first = brought.revision(BroughtModel(str(tmp_path / "model")))
    weights = next((tmp_path / "model").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert brought.revision(BroughtModel(str(tmp_path / "model"))) != first
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8, 3), np.uint8))
    of_pictures = brought.revision(BroughtModel(str(tmp_path / "a.npy")))
    np.save(tmp_path / "a.npy", np.ones((1, 8, 8, 3), np.uint8))
    assert brought.revision(BroughtModel(str(tmp_path / "a.npy"))) != of_pictures
