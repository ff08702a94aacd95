"""Finding places in any network by what they do: which layers make queries, which end a block."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import nnx

from ftjax.models.heads import is_new
from ftjax.models.layers import Network
from ftjax.tuning.adapted import AdaptedEmbed

# What a linear layer does, by its module path within the pretrained network. Families name their
# layers as their published checkpoints do; an output of attention or feed-forward is what is added
# to the residual stream.
ROLES = {
    "query": r".*\.(query|query_proj|q_proj|q_lin|q)",
    "key": r".*\.(key|key_proj|k_proj|k_lin|k)",
    "value": r".*\.(value|value_proj|v_proj|v_lin|v)",
    "query_key_value": r".*\.(c_attn|Wqkv|qkv_proj)",
    "attention_output": (
        r".*(attention\.output\.dense|\.o_proj|\.out_proj|\.out_lin|\.Wo|attn\.c_proj"
        r"|(SelfAttention|EncDecAttention)\.o)(?<!mlp\.Wo)"
    ),
    "feed_forward_input": (
        r".*(intermediate\.dense|\.gate_proj|\.up_proj|\.gate_up_proj|\.fc1|\.lin1|mlp\.Wi"
        r"|mlp\.c_fc|\.wi|\.wi_0|\.wi_1|\.weights_in)"
    ),
    "feed_forward_output": (
        r".*((?<!attention)\.output\.dense|\.down_proj|\.fc2|\.lin2|mlp\.Wo|mlp\.c_proj"
        r"|DenseReluDense\.wo|\.weights_out)"
    ),
}


class Block(NamedTuple):
    """Where a parameter stands in a stack of blocks.

    Attributes:
        stack: path of the list, such as `backbone.encoder.layer`.
        index: from the bottom, 0 first.
    """

    stack: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


def block_of(path: str) -> Block | None:
    """The block a parameter belongs to, None outside of all stacks."""
    match = re.match(r"(.*?)\.(\d+)\.", path)
    return Block(match[1], int(match[2])) if match else None


def parameter_paths(network: Network) -> list[str]:
    """Dotted paths of all parameters."""
    return [
        ".".join(map(str, path)) for path in nnx.to_flat_state(nnx.state(network, nnx.Param)).paths
    ]


def modules_of(network: Network, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """Dotted path -> module of a kind, in the order of paths; not of the task's own head."""
    found = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(network)
        if isinstance(module, kind)
    }
    return {path: found[path] for path in sorted(found) if not is_new(f"{path}.")}


def find_targets(
    network: Network, pattern: str | None, roles: Sequence[str], kind: type | tuple[type, ...]
) -> dict[str, Any]:
    """The layers a method is put on.

    Args:
        network: with the pretrained network in `backbone`.
        pattern: regular expression for whole module paths; None for the roles.
        roles: keys of `ROLES`, the method's default.
        kind: what can be a target.

    Raises:
        ValueError: nothing fits; names the nearest paths.
    """
    modules = modules_of(network, kind)
    expression = pattern or "|".join(f"({ROLES[role]})" for role in roles)
    try:
        chosen = {path: m for path, m in modules.items() if re.fullmatch(expression, path)}
    except re.error as error:
        raise ValueError(
            f"config.tuning.targets = {pattern!r} is no regular expression ({error})."
        ) from error
    if not chosen:
        what = f"config.tuning.targets = {pattern!r}" if pattern else f"The roles {list(roles)}"
        raise ValueError(
            f"{what} fit no layer of this network. The nearest are: "
            f"{', '.join(nearest_paths(pattern or '', list(modules)))}."
        )
    return chosen


def token_tables(network: Network) -> dict[str, Any]:
    """Path -> table that looks up the embeddings of tokens; none if the network reads no tokens."""
    rows = getattr(network.backbone.config, "vocab_size", None)
    return {
        path: layer
        for path, layer in modules_of(network, (nnx.Embed, AdaptedEmbed)).items()
        if layer.num_embeddings == rows and "position" not in path
    }


def replace_module(network: Network, path: str, module: nnx.Module) -> None:
    """Puts a module in the place of another."""
    *parents, last = path.split(".")
    owner = network
    for name in parents:
        owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
    if last.isdigit():
        owner[int(last)] = module
    else:
        setattr(owner, last, module)


def nearest_paths(pattern: str, paths: Sequence[str], count: int = 5) -> list[str]:
    """The paths most like a pattern that matched none, at least one of each kind."""
    kinds = {re.sub(r"\d+", "0", path): path for path in reversed(paths)}
    plain = re.sub(r"[\\.*+?()|\[\]^$]+", ".", pattern)
    close = difflib.get_close_matches(plain, kinds, n=count, cutoff=0.0)
    return [kinds[name] for name in close]
