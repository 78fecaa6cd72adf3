"""The fused group norm with ReLU against torch's."""

import pytest
import torch
import torch.nn.functional as F

from medsegmamba_bids.networks.kernels.group_norm import group_norm_relu
from medsegmamba_bids.networks.kernels.selective_scan import why_refused


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(
    ("channels", "size"), [(8, (9, 10, 11)), (64, (48, 40, 32)), (1024, (12, 12, 12)), (24, (8, 8, 8))]
)
def test_values(cuda, dtype, tolerance, channels, size):
    torch.manual_seed(0)
    x = (torch.randn(3, channels, *size) * 2 + 5).to(cuda, dtype).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(channels, device=cuda), torch.randn(channels, device=cuda)
    exact = F.relu(F.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-5))
    alone = x[1:2].clone(memory_format=torch.preserve_format)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
        found = group_norm_relu(x.clone(memory_format=torch.preserve_format), 8, weight, bias)
        assert float((found.double() - exact).abs().max() / exact.abs().max()) < tolerance
        if why_refused("triton", str(cuda)) is None and channels != 24:
            assert found.dtype == dtype
            assert torch.equal(group_norm_relu(alone, 8, weight, bias)[0], found[1])
