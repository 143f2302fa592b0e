"""What every method says of itself: the one base class of what is trained or computed.

A method is one file of ``pipeline/methods/<room>``. It names its kind and its configuration, what it needs, how it draws a
batch from named sources, its losses, its phases if it has several, and what it exports. The stages, the graph, the
artifacts and the report know no more than this class.

Parameters carry the replica axis first. Inside ``losses`` nothing synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dynarep.pipeline.nn.functional import Losses

if TYPE_CHECKING:
    from dynarep.data.resident import Batch, TransitionTable
    from dynarep.data.schema import Episode
    from dynarep.pipeline.measures import Measured
    from dynarep.pipeline.nn.models import Encoder, Model
    from dynarep.pipeline.playing.environments import CollectionConfig
    from dynarep.pipeline.training.config import TrainingConfig

METHODS: dict[tuple[str, str], type[Method]] = {}
"""Methods by room and kind; ``dynarep.pipeline.registry`` fills it."""


@dataclass(frozen=True)
class Needs:
    """What a method reads.

    Args:
        actions: roles of the datasets that must have actions.
        encoder: spaces that its encoder must have.
        optional_encoder: whether it also does without.
        rewards: whether it reads rewards.
        absorbing: lead terminated episodes into an absorbing state: ``steps`` for a fixed number of steps, ``discounted``
            for as many as it has mass in the occupancy discounted by ``gamma``.
        gamma: of ``discounted``.
        environment: what it acts in while it learns; the role ``dataset`` is then its own steps, after those of the entry's
            dataset if it names one.
        without: inputs that an entry may set to ``none``: ``dataset``, ``demonstrations``, ``rewards``.
        dataset: whether it can read a dataset at all.
        demonstrations: whether it can read demonstrations at all.
    """

    actions: tuple[str, ...] = ()
    encoder: tuple[str, ...] = ()
    optional_encoder: bool = False
    rewards: bool = False
    absorbing: str | None = None
    gamma: float = 0.99
    environment: CollectionConfig | None = None
    without: tuple[str, ...] = ()
    dataset: bool = True
    demonstrations: bool = True


@dataclass(frozen=True)
class World:
    """What a method is built for.

    Args:
        replicas: R.
        mean: of the observations, (observation_dim,), with the absorbing bit where there is one.
        std: likewise.
        action_low: bounds of actions; empty without actions.
        action_high: likewise.
        absorbing: whether the last number of an observation is the absorbing bit.
        encoder: the one that the entry names, with R replicas or one.
        latents: mean and deviation over the dataset of the points of the encoder's first space, (R or 1, 1, d) each.
    """

    replicas: int
    mean: Tensor
    std: Tensor
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    absorbing: bool = False
    encoder: Model | None = None
    latents: tuple[Tensor, Tensor] | None = None

    @property
    def observation_dim(self) -> int:
        """Numbers in an observation, without the absorbing bit."""
        return self.mean.shape[-1] - self.absorbing

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return len(self.action_low)

    @property
    def form(self) -> tuple[int, Tensor, Tensor, tuple[float, ...], tuple[float, ...]]:
        """Replicas, moments and bounds, in the order in which learners take them."""
        return self.replicas, self.mean, self.std, self.action_low, self.action_high


class Sources:
    """Tables of transitions by role, on the training device, as they are at the present update.

    Args:
        tables: by role, such as ``dataset`` and ``demonstrations``; what gives a table when asked for.
        replicas: R.
        batch_size: B.
        device: of the tables.
        rewards: of all transitions of ``dataset``, (R, N), where the method reads rewards.
    """

    def __init__(
        self,
        tables: Mapping[str, Callable[[], TransitionTable]],
        replicas: int,
        batch_size: int,
        device: torch.device,
        rewards: Tensor | None = None,
    ) -> None:
        self._tables = tables
        self.replicas, self.batch_size, self.device = replicas, batch_size, device
        self._rewards = rewards

    @property
    def rewards(self) -> Tensor:
        """Rewards (R, N) of the dataset's transitions."""
        assert self._rewards is not None, "the method does not say that it needs rewards"
        return self._rewards

    def sized(self, batch_size: int) -> Sources:
        """The same sources with another batch size."""
        return Sources(self._tables, self.replicas, batch_size, self.device, self._rewards)

    def table(self, role: str) -> TransitionTable:
        """The table of a role."""
        return self._tables[role]()

    def rows(self, count: int, generator: torch.Generator, times: int = 1) -> Tensor:
        """Independent uniform rows of ``count``: (R, times * B) int64."""
        shape = (self.replicas, times * self.batch_size)
        return torch.randint(count, shape, generator=generator, device=self.device)

    def draw(self, role: str, generator: torch.Generator) -> Batch:
        """A batch of uniform transitions of a role, (R, B, ...)."""
        table = self.table(role)
        return table.gather(table.random_rows(self.replicas, self.batch_size, generator))


@dataclass(frozen=True)
class Phase:
    """One training of a method.

    Args:
        learner: what is trained: ``parameter_groups``, ``losses``, ``after_update`` and ``export``.
        batch: draws from the sources.
        training: length and portions; None: those of the entry.
        name: of the phase, where there are several.
        shown: one or two metrics that tell whether it learns.
        finish: called with the sources when it has been trained.
    """

    learner: nn.Module
    batch: Callable[[Sources, torch.Generator], Any]
    training: TrainingConfig | None = None
    name: str = ""
    shown: Sequence[str] = ("loss",)
    finish: Callable[[Sources], None] | None = None


class Method(nn.Module):
    """Base of all methods.

    Class attributes:
        room: ``encoders``, ``rewards`` or ``learners``.
        kind: name of its file; empty for a base class.
        Config: its hyper-parameters.
        trains: whether its entry has a ``training``; a closed form has none.
        shown: one or two metrics that tell whether it learns.
        watches_gradients: whether the norm of its gradient is a metric, too.
    """

    room: ClassVar[str]
    kind: ClassVar[str] = ""
    Config: ClassVar[type]
    trains: ClassVar[bool] = True
    shown: ClassVar[Sequence[str]] = ("loss",)
    watches_gradients: ClassVar[bool] = False
    config: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("kind"):
            METHODS[cls.room, cls.kind] = cls

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """What it reads with this configuration."""
        return Needs()

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """The method for a world."""
        raise NotImplementedError

    def prepare(self, sources: Sources) -> None:
        """Compute once, before the training, what ``batch`` draws from."""

    def batch(self, sources: Sources, generator: torch.Generator) -> Any:
        """Draw a batch on the device."""
        raise NotImplementedError

    def losses(self, batch: Any) -> Losses:
        """One loss per replica; replicas are summed, so their gradients stay independent."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, ``{"params": [...], "lr": float}``.

        ``"cosine": True`` lets the rate decay to zero; ``"clip"`` limits the norm of each replica's gradient of the group.
        """
        raise NotImplementedError

    def after_update(self) -> None:
        """Move target networks."""

    def phases(self) -> list[Phase]:
        """The trainings, one after another."""
        return [Phase(self, self.batch, shown=self.shown)]

    def export(self) -> Model:
        """The model that is shipped."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What the metadata of the export say beside the configuration."""
        return {}


class EncoderMethod(Method):
    """A method that makes an encoder."""

    room = "encoders"

    def start_from(self, encoder: Encoder) -> None:
        """Take the weights of an encoder of the same architecture."""
        raise ValueError(f"{self.kind} cannot start from another encoder")

    @classmethod
    def check_held_out(cls, held_out: list[Episode]) -> None:
        """Refuse, before the training, episodes on which nothing can be measured."""
        from dynarep.pipeline.measures import check_held_out

        check_held_out(held_out)

    @classmethod
    def measure(
        cls,
        c: Any,
        encoder: Encoder,
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """Measure an encoder, and calibrate it where it carries a calibration.

        Args:
            c: configuration of the method.
            encoder: frozen, on the CPU.
            held_out: episodes to measure on.
            table: transitions that were trained on.
            whole: those of the whole dataset, or of a stream what is in memory.
            episodes: that stand for the whole dataset.
        """
        from dynarep.pipeline.measures import measure_space

        return measure_space(encoder, held_out, episodes)


class Learner(Method):
    """A method that makes a policy.

    ``saw`` says in words what it is trained on.
    """

    room = "learners"

    @classmethod
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """What a policy of this configuration is trained on.

        Args:
            c: its configuration.
            expert: the demonstrations in words.
            data: the dataset in words.
            rewards: name of the rewards, None without.
        """
        if rewards is None:
            return {"expert": expert, "other": f"{data} without rewards"}
        return {"expert": f"what the rewards {rewards} saw", "other": f"{data} with the rewards {rewards}"}
