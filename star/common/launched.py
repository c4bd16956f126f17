"""What the environment says about the processes of a run."""

import os

from star.common.errors import UserError

OF_SEVERAL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that launchers of several processes set, always all of them."""

OFF = ("", "0", "false", "f", "no", "n", "off")
"""What accelerate takes for no."""

OURS = {
    "ACCELERATE_USE_DEEPSPEED": OFF,
    "ACCELERATE_USE_FSDP": OFF,
    "ACCELERATE_USE_MEGATRON_LM": OFF,
    "ACCELERATE_USE_PARALLELISM_CONFIG": OFF,
    "ACCELERATE_MIXED_PRECISION": ("", "no"),
    "ACCELERATE_DYNAMO_BACKEND": ("", "no"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("", "1"),
}
"""Variable for what accelerate would do by itself, but this project has settings for -> values that keep it off."""


def is_first() -> bool:
    """Whether this process speaks for its run: alone, or the first of several."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def asked() -> str:
    """What the environment asks of accelerate, for a message; empty if nothing."""
    names = [name for name in sorted(os.environ) if name.startswith("ACCELERATE_") or name in OF_SEVERAL]
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def check_launched() -> None:
    """Refuse incomplete or wrong variables of several processes, and those that ask accelerate for what is not done here.

    Raises:
        UserError: names the variable, and what to do.
    """
    known = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    known += ["WORLD_SIZE"] if os.environ.get("WORLD_SIZE", "1") != "1" else []
    missing = [name for name in OF_SEVERAL if name not in os.environ]
    if known and missing:
        raise UserError(
            f"the environment has {known[0]}={os.environ[known[0]]}, as of one of several processes, but no {missing[0]}; "
            f"unset {' and '.join(known)}, or start with `accelerate launch` or `torchrun`"
        )
    if known:
        places = {name: os.environ[name] for name in OF_SEVERAL if name != "MASTER_ADDR"}
        if wrong := next((name for name, value in places.items() if not value.isdecimal()), None):
            raise UserError(f"the environment's {wrong}={places[wrong]} is no whole number; correct it, or unset it")
        if int(places["RANK"]) >= int(places["WORLD_SIZE"]):
            raise UserError(
                f"the environment has RANK={places['RANK']} of WORLD_SIZE={places['WORLD_SIZE']}: ranks begin at 0"
            )
    for name, fine in OURS.items():
        if (value := os.environ.get(name, "").lower()) not in fine:
            raise UserError(
                f"{name}={value} is not supported; unset it, or start with `torchrun` if `accelerate launch` took it from its "
                "configuration: model.dtype, model.offload, model.shard, model.compile and train.micro_batch are the settings"
            )


def check_alone(command: str) -> None:
    """Refuse to be one of several processes.

    Args:
        command: the one that takes one process alone.

    Raises:
        UserError: it is; or what :func:`check_launched` refuses.
    """
    check_launched()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{command} takes one process; start it without a launcher")
