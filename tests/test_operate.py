"The commands that serve and deploy: plans without an account, refusals in one line, nothing deleted by accident."
import json, os, subprocess, sys

import pytest

ENV = {k: v for k, v in os.environ.items() if not k.startswith('AWS_')} | dict(AWS_EC2_METADATA_DISABLED='true', AWS_CONFIG_FILE='/dev/null', AWS_SHARED_CREDENTIALS_FILE='/dev/null', HTTPS_PROXY='http://127.0.0.1:9')


def say(command, *options, stdin=''):
    "Exit status, output and errors of a command in a process without credentials or network"
    code = f'import sys; sys.argv[0] = {command!r}; from bin_counter.operate import {command}; sys.exit({command}())'
    p = subprocess.run([sys.executable, '-c', code, *options], capture_output=True, text=True, input=stdin, env=ENV, timeout=120)
    return p.returncode, p.stdout, p.stderr


def test_a_plan_needs_no_account_no_network_and_no_package():
    status, out, err = say('bin_deploy', '--package', 'nowhere.tar.gz', '--dry-run')
    assert status == 0 and 'what it costs a month' in out and 'cloudformation:CreateChangeSet' in out, err


@pytest.mark.parametrize('options, extra', [((), 'Lambda'), (('--answer', 'endpoint', '--endpoint', 'realtime', '--image', 'bin-counter:1.0'), 'ml.c5.large by the hour')])
def test_a_plan_as_json_is_the_same_plan(options, extra):
    plan = json.loads(say('bin_deploy', '--package', 'p.tar.gz', '--as-json', *options)[1])
    text = say('bin_deploy', '--package', 'p.tar.gz', '--dry-run', *options)[1]
    assert extra in text and len(plan['steps']) == sum(line.lstrip()[:2].strip().isdigit() for line in text.split('what it costs')[0].splitlines())


def test_a_key_is_made_but_only_its_hash_is_sent():
    plans = [json.loads(say('bin_deploy', '--package', 'p.tar.gz', '--as-json', '--access', 'key', *given)[1]) for given in ((), (), ('--key-sha256', 'a'*64))]
    def sent(plan): return next(p['ParameterValue'] for s in plan['steps'] for p in s['request'].get('Parameters', []) if p['ParameterKey'] == 'KeySha256')
    assert sent(plans[2]) == 'a'*64 and len(sent(plans[0])) == 64 and sent(plans[0]) != sent(plans[1])


@pytest.mark.parametrize('command, options, line', [
    ('bin_deploy', ('--package', 'p', '--answer', 'endpoint', '--dry-run'), 'an endpoint that does not exist cannot answer'),
    ('bin_deploy', ('--package', 'p', '--access', 'iam', '--dry-run'), 'add --no-page'),
    ('bin_deploy', ('--package', 'p', '--url-hosts', '*', '--dry-run'), 'host'),
    ('bin_deploy', ('--package', 'nowhere.tar.gz'), 'nowhere.tar.gz'),
    ('bin_bundle', ('--kind', 'local', '--out', 'x.zip'), 'package'),
    ('bin_bundle', ('--kind', 'both', '--out', 'x.zip'), 'both'),
    ('bin_serve', ('--package', 'nowhere.tar.gz'), 'nowhere.tar.gz'),
    ('bin_up', ('--package', 'nowhere.tar.gz'), 'no such package'),
    ('bin_up', ('--package', __file__, '--answer', 'nobody'), 'choose one of endpoint, local'),
    ('bin_teardown', (), 'add --yes'),
    ('bin_teardown', ('--yes',), 'credentials'),
    ('bin_status', (), 'credentials')])
def test_a_refusal_is_one_line_that_says_what_to_do(command, options, line, tmp_path):
    status, out, err = say(command, *options)
    assert status == 1 and out == '' and line in err and err.startswith(f'{command}: ') and err.count('\n') == 1
