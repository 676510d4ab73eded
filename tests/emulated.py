"What tests against the emulated AWS share: a project's name, somebody who asks, and patience."
import time

from bin_counter.cloud import Asker
from bin_counter.plans import Project

ACCOUNT = '123456789012'
ROLE = f'arn:aws:iam::{ACCOUNT}:role/bins'
CLIENTS = {} # connections that are made once, for the emulator of one module: reading SageMaker's description takes a second


def at(name, **more): return Project(name, account=ACCOUNT, role=ROLE, **more)


def quiet(project, said=None, say=None):
    "Somebody who asks and keeps what is said to himself"
    asker = Asker(project.region, None, say or (said.append if said is not None else lambda line: None), .05)
    asker.clients = CLIENTS
    return asker


def wait_for(ready, seconds=30, why='it'):
    "What `ready` says once it is something"
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f'waited {seconds} s for {why}'
        time.sleep(.05)
    return found
