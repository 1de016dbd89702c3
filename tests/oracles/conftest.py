import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Oracles work on scalars, where a second thread only waits for the first: much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
