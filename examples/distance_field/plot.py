"""How far every point of a plane is from a goal, by an intent encoder that another project made."""

import argparse

import matplotlib

import dynarep

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def field(
    encoder: dynarep.PretrainedIntent, goal: np.ndarray, axes: tuple[int, int], x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Distances to the goal, (len(y), len(x)), of observations that differ from it in two components."""
    observations = np.tile(goal, (len(y), len(x), 1))
    observations[..., axes[0]], observations[..., axes[1]] = x, y[:, None]
    return encoder.distance(observations, goal)


def main(arguments: list[str] | None = None) -> None:
    """Draw the field into a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="a path, dvc://<repository>#<path> or hf://<owner>/<name>")
    parser.add_argument("--goal", type=float, nargs="+", required=True, help="an observation")
    parser.add_argument("--axes", type=int, nargs=2, default=(0, 1), help="components of the observation to vary")
    parser.add_argument("--low", type=float, nargs=2, default=(-1.0, -1.0))
    parser.add_argument("--high", type=float, nargs=2, default=(1.0, 1.0))
    parser.add_argument("--out", default="field.png")
    options = parser.parse_args(arguments)

    encoder = dynarep.load_encoder(options.encoder)
    x, y = (np.linspace(low, high, 120) for low, high in zip(options.low, options.high, strict=True))
    goal = np.array(options.goal)
    distances = field(encoder, goal, options.axes, x, y)

    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    drawn = axis.contourf(x, y, distances, levels=20, cmap="viridis")
    axis.contour(x, y, distances, levels=20, colors="white", linewidths=0.3)
    axis.plot(*goal[list(options.axes)], marker="*", markersize=14, color="red")
    axis.set(xlabel=f"observation[{options.axes[0]}]", ylabel=f"observation[{options.axes[1]}]", aspect="auto")
    figure.colorbar(drawn, label="squared distance of psi to the star\n(1: a step of the pretraining data)")
    figure.savefig(options.out, dpi=150)
    print(f"{options.out}: distances from {distances.min():.2f} to {distances.max():.2f}")


if __name__ == "__main__":
    main()
