"""The GPUs as the real nvidia-ml-py reads them, from a small library that stands in for NVIDIA's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pynvml")
COMPILER = shutil.which("gcc")
# Two GPUs; the second is divided by MIG into one instance, and has room for another.
LIBRARY = r"""
#include <stdio.h>
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "stand-in"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetUUID(void *d, char *text, unsigned size) {
  return snprintf(text, size, (long)d == 3 ? "MIG-%ld" : "GPU-%ld", (long)d) < 0;
}
int nvmlDeviceGetMemoryInfo(void *d, memory *m) {
  m->total = 1000; m->used = 100 * (long)d; m->free = m->total - m->used; return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *pending) {
  if ((long)d == 1) return 3; /* not supported */
  *now = *pending = 1; return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **m) {
  if (i) return 6; /* not found */
  *m = (void *)3; return 0;
}
"""
SHOW = "from kodolly.worker.gpus.devices import list_gpus as g; print([(d.uuid, d.used, d.total) for d in g()])"


@pytest.mark.skipif(COMPILER is None, reason="needs gcc")
def test_gpus_and_mig_instances_are_listed_with_their_memory(tmp_path: Path) -> None:
    """The instance stands for the GPU that MIG divides."""
    source = tmp_path / "nvml.c"
    source.write_text(LIBRARY)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True)

    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout.strip() == "[('GPU-1', 100, 1000), ('MIG-3', 300, 1000)]"
