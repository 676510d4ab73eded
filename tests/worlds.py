"Several processes as the ranks of one world, quickly: a server that has loaded the training code forks them."
import multiprocessing, os, pickle, socket, time, traceback
from pathlib import Path

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['bin_counter.train', 'fastai.distributed'])


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _child(folder, env, func, args):
    "What runs in a rank: standard output and error, result and exit status go to files"
    os.environ.update(env)
    for name, fd in (('out', 1), ('err', 2)):
        f = os.open(folder/name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(f, fd)
    status, result = 0, None
    try: result = func(*args)
    except SystemExit as e: status = e.code
    except BaseException:
        status = 1
        traceback.print_exc()
    (folder/'result').write_bytes(pickle.dumps(result))
    os._exit(status)


class Ranks:
    "Processes of one world; `env` and `args` may be a function of the rank"
    def __init__(self, folder, func, args=(), size=2, env=None):
        port, given = free_port(), lambda x, rank: x(rank) if callable(x) else x
        self.folders = [Path(folder)/f'rank{r}' for r in range(size)]
        self.processes = []
        for r, f in enumerate(self.folders):
            f.mkdir(parents=True, exist_ok=True)
            own = dict(OMP_NUM_THREADS='1', BIN_COUNTER_PROGRESS='0', **(given(env, r) or {}))
            if size > 1: own |= dict(WORLD_SIZE=str(size), RANK=str(r), LOCAL_RANK=str(r), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), GLOO_SOCKET_IFNAME='lo')
            self.processes.append(SERVER.Process(target=_child, args=(f, own, func, given(args, r))))
        for p in self.processes: p.start()

    def wait(self, seconds=120):
        "Exit status of each rank; those that hang are killed, and are None"
        end = time.time() + seconds
        for p in self.processes: p.join(max(0.1, end - time.time()))
        status = [p.exitcode for p in self.processes]
        for p in self.processes:
            if p.exitcode is None: p.kill()
            p.join()
        return status

    def text(self, rank, name='out'): return (self.folders[rank]/name).read_text()
    def result(self, rank): return pickle.loads((self.folders[rank]/'result').read_bytes())
    def all_text(self): return '\n'.join(f'--- rank {i} {n}\n{self.text(i, n)}' for i in range(len(self.folders)) for n in ('out', 'err'))
