"""Which parameters move: one file per method or kin of methods, and one line here."""

from ftjax.tuning import bottleneck, ia3, lora, masks, vera, virtual_tokens
from ftjax.tuning.method import Method

METHODS: dict[str, Method] = {
    **masks.METHODS,
    **lora.METHODS,
    **vera.METHODS,
    **ia3.METHODS,
    **bottleneck.METHODS,
    **virtual_tokens.METHODS,
}
