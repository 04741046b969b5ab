"""How much memory a child process of a test takes."""

# For the child's source: `peak_mib()`. Unlike ru_maxrss, it leaves out the memory of the process that started the child.
PEAK_MIB = """
def peak_mib():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) >> 10
"""
