"""---
title: All commands
description: Every command with its options and one example.
---"""
import sys
from nbdev.config import get_config
sys.path.insert(0, str(get_config().config_path/'tools'))
from docs.pages import commands
print(commands())
