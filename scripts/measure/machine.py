"""Describes the machine on which measurements are made."""

import os
from pathlib import Path
import platform
import re


def count_cores():
    """Returns the number of cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def describe_machine():
    """Returns the processor and its cores, in words."""
    processor = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        models = re.findall(
            r'model name\s*: (.+)', Path('/proc/cpuinfo').read_text()
        )
        processor = models[0] if models else processor
    return f'{processor}, {count_cores()} cores'
