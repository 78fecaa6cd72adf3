"""What tests of networks need of a processor."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _bfloat16_where_it_is_known(request):
    """Skip tests marked ``bfloat16`` where oneDNN refuses it."""
    if request.node.get_closest_marker("bfloat16") and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not know bfloat16 on this processor")
