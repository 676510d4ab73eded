"""---
title: Contributing
description: How a change is made, tested and shown.
---"""
import sys
from nbdev.config import get_config
sys.path.insert(0, str(get_config().config_path/'tools'))
from docs.pages import included
print(included('CONTRIBUTING.md'))
