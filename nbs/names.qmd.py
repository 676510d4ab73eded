"""---
title: All names
description: Every public name, where it is explained and where it is defined.
---"""
import sys
from nbdev.config import get_config
sys.path.insert(0, str(get_config().config_path/'tools'))
from docs.pages import names
print(names())
