import resource
import subprocess
import sys

import pytest

SHOW = """
import resource, sys
from repa_pipe.pipeline.runtime.descriptors import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
raise_descriptor_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [((256, 4096), (4096, 4096)), ((400, 400), (400, 400)), ((100, HARD), (min(HARD, 65_536), HARD))],
)
def test_the_soft_limit_of_open_files_is_raised_as_far_as_allowed(before, after):
    command = [sys.executable, "-c", SHOW, *map(str, before)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert tuple(map(int, done.stdout.split())) == after
