"""The lock of a partition: one run, any number of its processes, gone with them."""

import os
import signal
import subprocess
import sys

import pytest

from fbmem_core.errors import InputError
from fbmem_core.store.locks import partition_lock

KEY = "mine-0123456789ab"


def test_another_run_is_refused_by_name_until_the_lock_is_free(tmp_path):
    with partition_lock(tmp_path, KEY, "one"):
        message = rf"^Expected no other run of {KEY}, but got one at work: one\. Wait until it ends, or stop it\.$"
        with pytest.raises(InputError, match=message), partition_lock(tmp_path, KEY, "two"):
            pass
        with partition_lock(tmp_path, "other-0123456789ab", "two"):
            pass
    with partition_lock(tmp_path, KEY, "two"):
        pass


def test_the_steps_of_one_run_hold_it_together(tmp_path):
    with partition_lock(tmp_path, KEY, "one"), partition_lock(tmp_path, KEY, "one"):
        pass
    with partition_lock(tmp_path, KEY, "one") as _:
        with partition_lock(tmp_path, KEY, "one"):
            pass
        with pytest.raises(InputError), partition_lock(tmp_path, KEY, "two"):
            pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fbmem_core.store.locks import partition_lock\n"
        f"with partition_lock(Path(sys.argv[1]), {KEY!r}, 'one'): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError), partition_lock(tmp_path, KEY, "two"):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with partition_lock(tmp_path, KEY, "two"):
        pass
