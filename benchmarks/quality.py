"""What the VAE that ships with repa-pipe loses: `repa-pipe store quality` on the 20 photographs of the demo.

    python benchmarks/quality.py --folder DIR                       # a minute on 2 cores
    python benchmarks/quality.py --folder DIR --resolution 64       # a quick look
    python benchmarks/quality.py --folder DIR --detector inception --lpips    # with published weights

Encodes the photographs with `tiny-kl-f8`, and as `pixels`, which lose nothing.
"""

import argparse
from pathlib import Path

from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.store_tools import quality
from repa_pipe.pipeline.store_tools.quality_options import QualityOptions
from repa_pipe.sources.demo_images import photographs

VAES = ("tiny-kl-f8", "pixels")


def link_photographs(folder: Path) -> Path:
    """Link each photograph into a folder of its class."""
    for path, label in photographs():
        link = folder / f"{label:03d}" / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the images, the store and results go")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--detector", default="efficientnet-lite0", help="inception, or the name of an encoder")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS, which needs the weights of VGG16")
    args = parser.parse_args()
    images, store = link_photographs(args.folder / "images"), str(args.folder / "store")
    without = () if args.lpips else ("lpips",)
    for vae in VAES:
        encode.run(EncodeConfig(source=str(images), store=store, vae=vae, resolution=args.resolution, device="cpu"))
        out = str(args.folder / f"{vae}.json")
        print(quality.run(store, QualityOptions(vae=vae, without=without, detector=args.detector, out=out)))


if __name__ == "__main__":
    main()
