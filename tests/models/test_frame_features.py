import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from vlkd.errors import UserError
from vlkd.models.frame_features import image_features, video_features

NETWORK = "timm:mobilenetv3_small_050"


def frame(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_image_features_are_those_of_the_network_without_its_head(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    save_file({f"module.{k}": v for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    tower = image_features(NETWORK, str(tmp_path / "w.safetensors"))
    frames = torch.stack([tower.shrink(frame(seed=k)) for k in range(2)])
    config = whole.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = whole.forward_head(
            whole.forward_features((frames.float() / 255 - mean) / std), pre_logits=True
        )
    assert tower.width == expected.shape[1] and frames.shape == (2, 3, 224, 224)
    torch.testing.assert_close(tower(frames), expected, rtol=1e-4, atol=1e-5)


def test_video_features_are_those_of_the_network_without_its_head(tmp_path):
    torch.manual_seed(3)
    whole = get_model("r3d_18", weights=None, num_classes=5).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    tower = video_features("r3d_18", str(tmp_path / "w.pt"), frames=4)
    clip = torch.stack([tower.shrink(frame(seed=k)) for k in range(4)])[None]
    assert clip.shape == (1, 4, 3, 112, 112) and tower.width == 512
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    )
    whole.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = whole(((clip.float() / 255 - mean) / std).transpose(1, 2))
    torch.testing.assert_close(tower(clip), expected, rtol=1e-4, atol=1e-4)


def test_the_centre_is_cut_from_the_short_side_of_a_frame():
    tower = video_features("r3d_18", "random", frames=2)
    image = np.zeros((128, 256, 3), np.uint8)
    image[:, 72:184] = 255  # the central 112 columns: 128 high is the short side already
    assert tower.shrink(image).float().mean() == 255
    assert tower.shrink(frame(17, 400)).shape == (3, 112, 112)


def test_random_weights_are_fixed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = image_features(NETWORK, "random"), image_features(NETWORK, "random")
    assert first.identity == second.identity and first.identity.startswith(f"{NETWORK}@")
    assert torch.rand(1) == expected


def test_clip_models_give_their_image_embedding():
    tower = image_features("vlkd-clip-s", "random")
    found = tower(torch.stack([tower.shrink(frame())]))
    assert found.shape == (1, tower.width) and not torch.allclose(found.norm(), torch.ones(()))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: image_features("ViT-B-32"), "architecture without weights"),
        (lambda: image_features("timm:resnet1x"), "nearest: resnet18"),
        (lambda: image_features("nono"), "not a file, a zoo name"),
        (lambda: image_features(NETWORK, "absent.pt"), "no such weights file"),
        (lambda: video_features("timm:r3d", "random"), "timm has no video networks"),
        (lambda: video_features("r3d_81", "random"), "r3d_18"),
        (lambda: video_features("mvit_v1_b", "random", 8), "does not take clips of 8 frames"),
    ],
)
def test_errors_are_one_line(make, says):
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not weights of this MobileNetV3"):
        image_features(NETWORK, str(tmp_path / "w.safetensors"))
