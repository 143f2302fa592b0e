"""PPO on a frozen psi(s) beside PPO on observations."""

import argparse

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from dynarep.pipeline.integrations.stable_baselines3 import EncoderExtractor


def main(arguments: list[str] | None = None) -> None:
    """Train with each of some seeds, print returns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="a path, dvc://<repository>#<path> or hf://<owner>/<name>")
    parser.add_argument("--env", default="Hopper-v4", help="whose observations the encoder reads")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args(arguments)

    psi = {
        "features_extractor_class": EncoderExtractor,
        "features_extractor_kwargs": {"encoder": options.encoder, "trainable": False},
    }
    for name, policy_kwargs in (("observations", {}), ("psi", psi)):
        returns = []
        for seed in range(options.seeds):
            agent = PPO("MlpPolicy", gymnasium.make(options.env), policy_kwargs=policy_kwargs, seed=seed, device="cpu")
            agent.learn(options.steps)
            mean, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=options.episodes)
            returns.append(mean)
        shown = ", ".join(f"{value:.1f}" for value in returns)
        print(f"{name}: mean return {np.mean(returns):.1f} after {options.steps:,} steps (seeds: {shown})")


if __name__ == "__main__":
    main()
