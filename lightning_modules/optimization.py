"""AdamW, its groups and the learning-rate schedules: BEiT-3's recipe, which MultiWay-Adapter uses, and UNITER's.

Official files: unilm `beit3/optim_factory.py`, `utils.cosine_scheduler` (no weight decay on vectors, layer-wise decay, linear
warm-up from 0, cosine to `min_lr`, per step); ChenRocks/UNITER `optim/adamw.py`, `optim/sched.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.errors import InputError


@dataclass
class Optimization:
    """AdamW with warm-up and decay. The defaults are of BEiT-3's kind; UNITER's are in configs/model/uniter_base.yaml.

    Args:
        lr: Peak learning rate.
        min_lr: Learning rate at the last step, of what learns at lr; other rates come down by the same factor.
        warmup_fraction: Part of all steps that warms up linearly from 0.
        weight_decay: Decoupled weight decay, on matrices only: biases, norms, class tokens, the positions of an image
            tower that says so, the temperature and an adapter's factors get none.
        betas: AdamW's moment decays.
        eps: AdamW's epsilon.
        layer_decay: The learning rate of layer i is multiplied by layer_decay^(layers + 1 - i). 1.0 = none.
        layer_decay_on_adapters: Apply layer_decay to adapters as the released MWA code does; by default they learn at the
            full rate (at 0.65 the first adapter of 12 layers would learn at 0.6 % of it).
        adapter_lr: Peak learning rate of adapters (null: lr). Alone it is refused where no adapter trains; a recipe for several
            tunings gives it beside backbone_lr.
        backbone_lr: Peak learning rate of what is neither adapter nor head (null: lr), likewise. Heads are new and always learn
            at lr.
        schedule: After the warm-up: cosine, or linear (to 0 at the last step, never below min_lr), as UNITER's.
        algorithm: adamw, or uniter_adamw: the released code adds eps before it corrects the bias and decays after the update.
        fused: One kernel a parameter group instead of a dozen passes over its memory. It cannot be clipped for at precision
            16-mixed; set it to false there. Not for uniter_adamw.
    """

    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_fraction: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 1.0
    layer_decay_on_adapters: bool = False
    adapter_lr: float | None = None
    backbone_lr: float | None = None
    schedule: Literal["cosine", "linear"] = "cosine"
    algorithm: Literal["adamw", "uniter_adamw"] = "adamw"
    fused: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise InputError(f"warmup_fraction is {self.warmup_fraction}; it is a part of all steps: give 0 <= x < 1.")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}; give 0 < x <= 1 (1 = none).")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"optimization.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("min_lr", "weight_decay", "adapter_lr", "backbone_lr"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise InputError(f"optimization.{name} is {getattr(self, name)}; give at least 0.")
        if self.lr < self.min_lr:
            raise InputError(
                f"optimization.lr is {self.lr}, below optimization.min_lr ({self.min_lr}), so the learning rate would rise to "
                "the last step: give a min_lr of at most lr, for example 0."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimization.betas is {list(self.betas)}; give two numbers, 0 <= x < 1.")


def parameter_groups(
    network: Any,
    settings: Optimization,
    is_adapter: Callable[[str], bool],
    objective: nn.Module | None = None,
    spares: Callable[[str], bool] = lambda _name: False,
) -> list[dict[str, Any]]:
    """Trainable parameters of the network, then of the objective, which learn at lr as heads do; grouped by (learning-rate
    scale, weight decay), each group named for the logs.

    No decay on vectors, nor on what the network (`no_decay_parameters`) or the adapter (`spares`) spares besides; a
    network may name vectors that its recipe decays all the same (UNITER's `decayed_vectors`).

    Raises:
        InputError: Nothing is trainable.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    parameters: dict[str, nn.Parameter] = dict(network.named_parameters())
    heads = {name for name, _ in network.head_parameters()}
    spared: Set[str] = getattr(network, "no_decay_parameters", frozenset)()
    decayed: Set[str] = getattr(network, "decayed_vectors", frozenset)()

    def add(parameter: nn.Parameter, scale: float, decay: float) -> None:
        group = groups.setdefault(
            (scale, decay),
            {
                "params": [],
                "lr": settings.lr * scale,
                "weight_decay": decay,
                "name": f"x{scale:.3g}{'' if decay else '_no_decay'}",
            },
        )
        group["params"].append(parameter)

    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        vector = (_is_vector(parameter) or name.endswith(".bias")) and name not in decayed
        decay = 0.0 if vector or name in spared or spares(name) else settings.weight_decay
        adapter = is_adapter(name)
        scale = 1.0
        if settings.layer_decay < 1 and (not adapter or settings.layer_decay_on_adapters):
            scale = settings.layer_decay ** (network.num_layers + 1 - network.layer_id(name))
        own_lr = settings.adapter_lr if adapter else None if name in heads else settings.backbone_lr
        if own_lr is not None:
            scale *= own_lr / settings.lr
        add(parameter, scale, decay)
    for parameter in [] if objective is None else objective.parameters():
        if parameter.requires_grad:
            add(parameter, 1.0, 0.0 if _is_vector(parameter) else settings.weight_decay)
    if not groups:
        raise InputError("nothing is trainable: choose tuning full, adapter (with an adapter) or head.")
    return list(groups.values())


def _is_vector(parameter: nn.Parameter) -> bool:
    """Also one in the shape of a batch, as a class token is [1, 1, W]. The matrix of a layer with one output, [1, W], is none."""
    return parameter.ndim <= 1 or (parameter.ndim > 2 and sum(size > 1 for size in parameter.shape) <= 1)


def schedule_factor(step: int, total: int, settings: Optimization) -> float:
    """Learning rate of a step (0-based) as a fraction of the peak.

    cosine: linear from 0 (`np.linspace(0, lr, warmup)`), cosine to min_lr. linear: the official `get_lr_sched` is called with the
    number of steps done when this one is: the first has 1 / warmup, the last 0, and none less than min_lr.
    """
    warmup = int(total * settings.warmup_fraction + 1e-6)  # 3 of 11 epochs are 30 of 110 steps: 3 / 11 * 110 is just below
    if settings.schedule == "linear":
        done = step + 1
        factor = done / warmup if done < warmup else (total - done) / max(total - warmup, 1)
        return max(factor, settings.min_lr / settings.lr)
    if step < warmup:
        return step / max(warmup - 1, 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    floor = settings.min_lr / settings.lr
    return floor + 0.5 * (1 - floor) * (1 + math.cos(math.pi * progress))


def build(
    network: Any,
    settings: Optimization,
    total_steps: int,
    is_adapter: Callable[[str], bool],
    objective: nn.Module | None = None,
    spares: Callable[[str], bool] = lambda _name: False,
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of what trains, and its schedule over so many steps.

    Raises:
        InputError: Nothing is trainable, or an option is for what does not train.
    """
    _require_use(network, settings, is_adapter)
    groups = parameter_groups(network, settings, is_adapter, objective, spares)
    optimizer: Optimizer
    if settings.algorithm == "uniter_adamw":
        optimizer = UniterAdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    else:
        optimizer = AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=settings.fused or None)
    return optimizer, LambdaLR(optimizer, lambda step: schedule_factor(step, total_steps, settings))


def _require_use(network: Any, settings: Optimization, is_adapter: Callable[[str], bool]) -> None:
    """See that options for adapters or the backbone have some to act on. Who gives both rates has a recipe for several tunings.

    Raises:
        InputError: Nothing that trains is what an option is for.
    """
    heads = {name for name, _ in network.head_parameters()}
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    adapters = any(is_adapter(name) for name in trained)
    backbone = any(not is_adapter(name) and name not in heads for name in trained)
    several = settings.adapter_lr is not None and settings.backbone_lr is not None
    for option, what, trains in (
        ("adapter_lr", "no adapter", adapters),
        ("backbone_lr", "nothing but adapters and heads", backbone),
    ):
        if (rate := getattr(settings, option)) is not None and not (trains or several):
            raise InputError(
                f"optimization.{option} is {rate}, but {what} trains here, so nothing would learn at it: set it to null (what "
                "trains learns at optimization.lr), or choose another tuning."
            )
    if settings.layer_decay_on_adapters and (not adapters or settings.layer_decay == 1):
        why = "no adapter trains here" if not adapters else "optimization.layer_decay is 1 (none)"
        raise InputError(f"optimization.layer_decay_on_adapters is true, but {why}: set it to false.")


class UniterAdamW(Optimizer):
    """AdamW as the released UNITER has it (`optim/adamw.py`, correct_bias): for step t

        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
        p = p - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps);   p = p - lr wd p

    torch's divides sqrt(v) by sqrt(1 - b2^t) before it adds eps (early steps differ where gradients are tiny), and decays first.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]] | Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; `closure` recomputes the loss, as Lightning wants it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                size = group["lr"] * math.sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-size)
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
        return loss
