"""Train tiny-kl-f8, the small VAE that ships with repa-pipe, on a few dozen photos.

    python runs/train_tiny_vae.py --photos /usr/share/backgrounds/mate /usr/share/wallpapers \
        --evaluate UNSEEN_PHOTOS/*.jpg --minutes 7 --out tiny-kl-f8

Seven minutes are enough on one recent CUDA GPU; on a CPU, the same number of steps takes far longer. The script writes
tiny-kl-f8.safetensors (float16) and tiny-kl-f8.json, the two files in models/weights/, to the folder --out.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

NAME = "tiny-kl-f8"
CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 48, 64, 80],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 256,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}
HELD_OUT = ("Garden", "Storm", "BytheWater", "FallenLeaf")  # photos for measuring progress, not for training
SHORT_SIDE = 1024  # photos are downscaled to this: finer detail is sensor noise
POOL_CROP = 256  # side of a crop in the pool, in pixels
TRAIN_CROP = 192  # side of the window of a crop that one step uses, in pixels
SMALLEST_CROP = 0.25  # fraction of the short side
BATCH = 48
PEAK_RATE = 1e-3
WARM_UP_STEPS = 200
EMA_DECAY = 0.999
KL_WEIGHT = 0.004  # per latent element; results in a posterior standard deviation of about 0.2
EDGE_WEIGHT = 0.1


def find_photos(folders: Sequence[Path]) -> list[Path]:
    """Return the JPEG and PNG files in folders, recursively, without symbolic links and desktop screenshots."""
    paths = (path for folder in folders for path in sorted(folder.rglob("*")))
    return [p for p in paths if p.suffix in {".jpg", ".png"} and "screenshot" not in p.name and not p.is_symlink()]


def read_photo(path: Path) -> Tensor | None:
    """Return a photo as uint8 `[3, H, W]`, or None if parts of it are transparent."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image:
        if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            return None
        image.draft("RGB", (SHORT_SIDE, SHORT_SIDE))
        photo = image.convert("RGB")
    scale = min(1.0, SHORT_SIDE / min(photo.size))
    size = (round(photo.width * scale), round(photo.height * scale))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()


def read_photos(paths: Sequence[Path]) -> list[Tensor]:
    with ThreadPoolExecutor() as threads:
        return [photo for photo in threads.map(read_photo, paths) if photo is not None]


def detail(photo: Tensor) -> float:
    """Return the amount of texture in a photo: the mean absolute difference between neighboring pixels, in levels."""
    gray = photo.float().mean(0)
    return float(gray.diff(dim=0).abs().mean() + gray.diff(dim=1).abs().mean())


def crop_pool(photos: Sequence[Tensor], count: int, device: torch.device, random: np.random.Generator) -> Tensor:
    """Return square crops of random scale, uint8 `[count, 3, 256, 256]`; textured photos are drawn more often."""
    weights = np.array([detail(photo) for photo in photos]) ** 0.5
    chosen = np.sort(random.choice(len(photos), size=count, p=weights / weights.sum()))
    pool = torch.empty(count, 3, POOL_CROP, POOL_CROP, dtype=torch.uint8, device=device)
    for position, index in enumerate(chosen):
        if position == 0 or index != chosen[position - 1]:
            photo = photos[index].to(device)
        short = min(photo.shape[1:])
        side = min(short, max(POOL_CROP, round(short * SMALLEST_CROP ** random.random())))
        top, left = random.integers(photo.shape[1] - side + 1), random.integers(photo.shape[2] - side + 1)
        window = photo[None, :, top : top + side, left : left + side].float()
        small = functional.interpolate(window, size=(POOL_CROP, POOL_CROP), mode="bicubic", antialias=True)
        pool[position] = small[0].clamp(0, 255).round().to(torch.uint8)
    return pool


def color_jitter(images: Tensor) -> Tensor:
    """Randomly change contrast, brightness, saturation and white balance of each image; values are in [-1, 1]."""
    shape, device = (images.shape[0], 1, 1, 1), images.device
    gray = images.mean(1, keepdim=True)
    images = torch.lerp(gray, images, torch.empty(shape, device=device).uniform_(0.3, 1.4))
    balance = torch.empty(shape[0], 3, 1, 1, device=device).uniform_(0.85, 1.15)
    contrast = torch.empty(shape, device=device).uniform_(0.7, 1.4)
    brightness = torch.empty(shape, device=device).uniform_(-0.2, 0.2)
    return (images * balance * contrast + brightness).clamp(-1, 1)


def draw_batch(pool: Tensor) -> Tensor:
    """Return a batch of jittered windows of the pool's crops, half of them flipped, float32 in [-1, 1]."""
    rows = torch.randint(len(pool), (BATCH,), device=pool.device)
    top, left = torch.randint(POOL_CROP - TRAIN_CROP + 1, (2,)).tolist()
    images = pool[rows, :, top : top + TRAIN_CROP, left : left + TRAIN_CROP].float() / 127.5 - 1
    flip = torch.rand(BATCH, 1, 1, 1, device=pool.device) < 0.5
    return color_jitter(torch.where(flip, images.flip(-1), images)).contiguous(memory_format=torch.channels_last)


class Reconstruction(nn.Module):
    """One pass through the VAE with a sample of its posterior, as a module that can be compiled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions, posterior means and posterior log variances."""
        mean, logvar = self.vae.encoder(images).float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.vae.decoder(latents).float(), mean, logvar


def objective(images: Tensor, output: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the root mean square error per image + edges + KL.

    The root reduces the weight of hard, textured images, since the goal is a high mean PSNR. The edge term compares
    differences between neighboring pixels at two scales, which keeps contours sharp.
    """
    rmse = ((output - images).square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
    difference = output - images
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    coarse = functional.avg_pool2d(difference, 2)
    edges = edges + coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return rmse + EDGE_WEIGHT * edges / 4 + KL_WEIGHT * kl


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return moments (mean and standard deviation) of uint8 images."""
    posterior = vae.encode(images.float() / 127.5 - 1).latent_dist
    return torch.cat([posterior.mean, posterior.std], 1)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor, noise: float = 0.0) -> Tensor:
    """Return the reconstruction PSNR per image in dB, with noise added to the latents (a fraction of their std)."""
    values = []
    for batch in images.split(16):
        mean = encode(vae, batch).chunk(2, 1)[0]
        output = vae.decode(mean + noise * mean.std() * torch.randn_like(mean)).sample
        pixels = (output * 127.5 + 127.5).clamp(0, 255).round()
        values.append(10 * torch.log10(255**2 / (pixels - batch.float()).square().mean((1, 2, 3))))
    return torch.cat(values)


def learning_rate(step: int, progress: float) -> float:
    """Return the learning rate: linear warm-up times a cosine decay over the training time."""
    return PEAK_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(vae: AutoencoderKL, pool: Tensor, held_out: Tensor, minutes: float, report_seconds: float) -> AutoencoderKL:
    """Train `vae` for a number of minutes and return the moving average of its weights."""
    on_gpu = pool.device.type == "cuda"
    model = Reconstruction(vae)
    step_function = torch.compile(model) if on_gpu else model
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=on_gpu)
    average = copy.deepcopy(vae).eval()
    weights, averages = list(vae.parameters()), list(average.parameters())
    start, reported, step, progress = time.monotonic(), 0.0, 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        images = draw_batch(pool)
        with torch.autocast(pool.device.type, torch.bfloat16, enabled=on_gpu):
            output, mean, logvar = step_function(images)
        loss = objective(images, output, mean, logvar)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        if step == 0:  # the time starts after compilation
            value = loss.item()
            print(f"first step after {time.monotonic() - start:.1f} s", flush=True)
            start = time.monotonic()
        step += 1
        elapsed = time.monotonic() - start
        progress = elapsed / (60 * minutes)
        if elapsed - reported > report_seconds or progress >= 1:
            value, reported = loss.item(), elapsed
            std = torch.exp(0.5 * logvar).mean().item()
            print(
                f"step {step:6d}  {elapsed:5.0f} s  loss {value:.4f}  posterior std {std:.3f}"
                f"  latents std {mean.std().item():.3f}  held-out PSNR {psnr(average, held_out).mean():.2f} dB",
                flush=True,
            )
    return average


def latents_std(vae: AutoencoderKL, crops: Tensor) -> float:
    """Return the standard deviation of posterior samples of crops."""
    moments = torch.cat([encode(vae, batch) for batch in crops.split(16)])
    mean, std = moments.chunk(2, 1)
    print("per channel: mean", mean.mean((0, 2, 3)).tolist(), "std", mean.std((0, 2, 3)).tolist(), flush=True)
    return float((mean + std * torch.randn_like(mean)).std())


def save(vae: AutoencoderKL, scaling_factor: float, folder: Path) -> None:
    """Write the weights in float16 and the model's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in vae.state_dict().items()}
    save_file(tensors, folder / f"{NAME}.safetensors")
    config = {"_class_name": "AutoencoderKL", **CONFIG, "scaling_factor": round(scaling_factor, 5)}
    (folder / f"{NAME}.json").write_text(json.dumps(config, indent=2) + "\n")


def read_test_images(paths: Sequence[Path], device: torch.device) -> Tensor:
    from repa_pipe.sources import center_crop

    crops = []
    for path in paths:
        with Image.open(path) as image:
            crops.append(torch.from_numpy(center_crop(image, POOL_CROP)).permute(2, 0, 1))
    return torch.stack(crops).to(device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train tiny-kl-f8, the VAE that ships with repa-pipe.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photos, searched recursively")
    parser.add_argument("--evaluate", type=Path, nargs="*", default=[], help="unseen photos to evaluate at the end")
    parser.add_argument("--minutes", type=float, default=7, help="duration of the training, after compilation")
    parser.add_argument("--crops", type=int, default=16384, help="crops in the pool; each takes 197 kB of memory")
    parser.add_argument("--report-seconds", type=float, default=30, help="seconds between progress reports")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)

    paths = find_photos(arguments.photos)
    is_held_out = [any(name in path.with_suffix("").parts for name in HELD_OUT) for path in paths]
    photos = read_photos([path for path, held in zip(paths, is_held_out, strict=True) if not held])
    held_out_photos = read_photos([path for path, held in zip(paths, is_held_out, strict=True) if held])
    pool = crop_pool(photos, arguments.crops, device, random)
    held_out = crop_pool(held_out_photos, 64, device, random)
    print(f"training on {len(photos)} photos, {len(held_out_photos)} held out, device {device}", flush=True)

    vae = AutoencoderKL(**CONFIG).to(device, memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters", flush=True)
    vae = train(vae, pool, held_out, arguments.minutes, arguments.report_seconds)
    vae.load_state_dict({name: tensor.half().float() for name, tensor in vae.state_dict().items()})
    scaling_factor = 1 / latents_std(vae, pool[torch.randperm(len(pool))[:2048]])
    save(vae, scaling_factor, arguments.out)
    print(f"scaling factor {scaling_factor:.5f}, held-out PSNR {psnr(vae, held_out).mean():.2f} dB", flush=True)
    if arguments.evaluate:
        images = read_test_images(arguments.evaluate, device)
        values, noisy = psnr(vae, images), psnr(vae, images, noise=0.1)
        print("PSNR of unseen photos, dB:", *(f"{value:.2f}" for value in values.tolist()))
        print(f"mean {values.mean():.2f}, min {values.min():.2f}, max {values.max():.2f}", end=", ")
        print(f"mean with noise of 0.1 std added to the latents {noisy.mean():.2f}", flush=True)


if __name__ == "__main__":
    main()
