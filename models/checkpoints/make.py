"""Train anew the small checkpoint that the demo starts from: ``python -m models.checkpoints.make [--trunk FILE]``, an hour on two cores."""
from __future__ import annotations

import argparse
import logging
from pathlib import Path

from models import checkpoint
from models.data.digits import write_digits
from models.train import evaluate_float, train

OUT = Path(__file__).parent / "tiny_digits.pt"


def main() -> None:
    """Draw the digits, train the preset ``tiny`` from scratch or from a trunk, and store it small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", type=Path, default=None, help="a ShuffleNetV2 x0.5 state dict (torchvision's names)")
    parser.add_argument("--data", type=Path, default=Path("data/digits"))
    parser.add_argument("--run", type=Path, default=Path("runs/checkpoint"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    write_digits(arguments.data)
    recipe = {"preset": "tiny", "epochs": arguments.epochs, "batch": 16, "lr": 2e-3, "augmentation": 0.3, "deep": 0.5, "flip": False}
    train(arguments.run, data=arguments.data, trunk=arguments.trunk, **recipe)
    ship(arguments.run / "float.pt", arguments.data, arguments.out, recipe)


def ship(source: Path, data: Path, out: Path, recipe: dict[str, object]) -> None:
    """Store ``source`` small in ``out`` and log what the stored network scores."""
    checkpoint.save_float(out, checkpoint.load_float(source), small=True, recipe=recipe)
    found = evaluate_float(checkpoint.load_float(out), data, "test")
    logging.info("%s: %d bytes, AP50 %.4f on the test split", out, out.stat().st_size, found["ap50"])


if __name__ == "__main__":
    main()
