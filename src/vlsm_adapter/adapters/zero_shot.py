"""Zero-shot: the base model as it is. Not trained, only evaluated; what every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsm_adapter.adapters.config import ADAPTERS, AdapterConfig, Placement
from vlsm_adapter.errors import AdapterError

if TYPE_CHECKING:
    from vlsm_adapter.models.base import PromptSegmenter


@ADAPTERS.register("zero_shot")
@dataclass(frozen=True)
class ZeroShotConfig(AdapterConfig):
    """The base model as it is, for studies; nothing trains."""

    method: ClassVar[str] = "zero_shot"
    trains: ClassVar[bool] = False

    def placements(self, model: PromptSegmenter) -> list[Placement]:
        """Never any.

        Raises:
            AdapterError: always; who asks wants to train.
        """
        raise AdapterError(
            "adapter 'zero_shot' trains nothing: score the base model with "
            f"'vlsm evaluate --model {model.base_id} --data DIR', or choose a method that trains"
        )
