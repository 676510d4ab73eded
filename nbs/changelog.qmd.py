"""---
title: Changelog
description: What changed for users, newest first.
---"""
import sys
from nbdev.config import get_config
sys.path.insert(0, str(get_config().config_path/'tools'))
from docs.pages import included
print(included('CHANGELOG.md'))
