"""Runs one check of stock Durus's own client-side tests against a server that runs already.

    stock_suite.py list
    stock_suite.py run MODULE CLASS CHECK PORT|@NAME|PATH [slowly]
    stock_suite.py stress PORT LOOPS|until [OBJECTS]

The tests are those of the unpacked source distribution in $DURUS_SOURCE, unchanged. Replaced from outside: _pre and
_post where they start and stop a stock server, the address they talk to, memory and temporary storages (by a client
of the server), and `sleep`, by which they give a pack in a stock server time to end: ours is agreed among nodes and
gets more. Prints one line of JSON. `until` goes on until standard input ends; `slowly` pauses before every request, so
that something can happen between them.
"""
import importlib
import json
import os
import sys
import threading
import time
import types

from durus.client_storage import ClientStorage

# The suite's test package is not installed with Durus; its modules call it durus.test.
import durus
package = types.ModuleType('durus.test')
package.__path__ = [os.path.join(os.environ['DURUS_SOURCE'], 'test')]
sys.modules['durus.test'] = package
durus.test = package

from sancho.utest import UTest, check_names, run_check

PACK_TIME_S = 3.0
SLOWLY_S = 0.1
MODULES = [name[:-3] for name in sorted(os.listdir(package.__path__[0]))
           if name.startswith('utest_') and name.endswith('.py')]


def load(module):
    return importlib.import_module('durus.test.' + module)


def test_classes(module):
    """The test classes a module itself defines."""
    return {name: value for name, value in vars(load(module)).items()
            if isinstance(value, type) and issubclass(value, UTest) and value.__module__ == load(module).__name__}


def list_checks():
    return {module: {name: check_names(value) for name, value in sorted(test_classes(module).items())}
            for module in MODULES}


def slow_down():
    for name in ('load', 'sync', 'end', 'new_oid'):
        def slowly(storage, *args, usual=getattr(ClientStorage, name)):
            time.sleep(SLOWLY_S)
            return usual(storage, *args)
        setattr(ClientStorage, name, slowly)


def run(module_name, class_name, check, address):
    module = load(module_name)
    port = None if address[0] in '@/' else int(address)
    test_class = test_classes(module_name)[class_name]
    for name in ('MemoryStorage', 'TempFileStorage'):
        if hasattr(module, name):
            setattr(module, name, lambda: ClientStorage(host='127.0.0.1', port=port))
    if hasattr(module, 'sleep'):
        module.sleep = lambda seconds: time.sleep(max(seconds, PACK_TIME_S))
    if hasattr(test_class, 'address'):
        test_class.address = ('127.0.0.1', port) if port else address
        test_class._pre = lambda test: setattr(test, 'port', port)
        test_class._post = lambda test: None
    talk, sys.stdout = sys.stdout, sys.stderr
    try:
        return run_check(test_class, check)
    finally:
        sys.stdout = talk


class Stopped(Exception):
    """Standard input has ended."""


def stress(port, loops, objects):
    module = load('stress')
    sys.argv = ['stress.py', '--port=%d' % port, '--cache_size=500']
    done = []
    if loops == 'until':
        stop = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
        sleep = module.maybe_sleep

        def maybe_sleep():
            # Called once in every loop, after its transaction.
            done.append(None)
            sleep()
            if stop.is_set():
                raise Stopped
        module.maybe_sleep = maybe_sleep
    else:
        sys.argv.append('--max-loops=%d' % int(loops))
    # The size of its object graph is random up to this; stock's own 10,000 make one commit of some 20 MB.
    module.MAX_OBJECTS = objects
    talk, sys.stdout = sys.stdout, sys.stderr
    try:
        module.main()
    except Stopped:
        pass
    finally:
        sys.stdout = talk
    return len(done)


def main():
    verb, args = sys.argv[1], sys.argv[2:]
    if verb == 'list':
        print(json.dumps(list_checks()))
    elif verb == 'run':
        module, class_name, check, port = args[:4]
        if args[4:] == ['slowly']:
            slow_down()
        print(json.dumps({'failure': run(module, class_name, check, port)}))
    elif verb == 'stress':
        print(json.dumps({'failure': None, 'loops': stress(int(args[0]), args[1], int((args + [1000])[2]))}))
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main()
