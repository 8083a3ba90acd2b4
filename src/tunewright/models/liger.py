"""Liger's fused kernels (https://github.com/linkedin/Liger-Kernel) in the place of a model's own norms and activations.

Only modules of this one model are changed. Liger's rotary positions would be put into transformers for every model of
the process, and its losses would compute what `layouts/loss.py` computes in chunks already, so both are left out.
"""

from typing import Any

from tunewright.errors import EnvironmentLackError, RecipeError


def use_liger_kernels(model: Any) -> None:
    """Let RMSNorm and SwiGLU or GeGLU of a causal language model compute by Liger's kernels from now on.

    Raises:
        EnvironmentLackError: liger-kernel is not installed.
        RecipeError: Liger has no kernels for this architecture.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise EnvironmentLackError(
            "use_liger_kernel",
            f"liger-kernel cannot be imported ({error})",
            mend="pip install liger-kernel, or leave it out.",
        ) from None
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RecipeError(
            "use_liger_kernel", f"Liger has no kernels for {model.config.model_type!r}", mend="Leave it out."
        )
    losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=model, rope=False, rms_norm=True, swiglu=True, geglu=True, **losses)
