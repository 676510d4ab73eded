"""---
title: Benchmarks
description: Speed and quality against others, each figure with the command that makes it.
---"""
import sys
from nbdev.config import get_config
sys.path.insert(0, str(get_config().config_path/'tools'))
from docs.pages import included
print(included('benchmarks/README.md'))
