"Plans, what carries them out, status and teardown: against moto where it can, against a strict order of answers where it cannot."
import json, os, subprocess, sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from bin_counter.cloud import Asker, CloudError, Plan, Step, apply, check_requests, fill, unknown, wait_for_stack
from bin_counter.core import ConfigError, bytes_hash
from bin_counter.prices import PRICES, Workload, monthly_charges, read_prices, total
from bin_counter.stack import StackConfig, empty_bucket, stack_plan, status, teardown

ROOT = Path(__file__).parents[1]
ACCOUNT = '123456789012'
STACK = f'arn:aws:cloudformation:eu-west-1:{ACCOUNT}:stack/bins/1'
SET = f'arn:aws:cloudformation:eu-west-1:{ACCOUNT}:changeSet/deploy/1'
IMAGE = f'{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/bin-counter:1.0'


@pytest.fixture(autouse=True)
def aws_settings(monkeypatch):
    "Credentials that are none, no files of the user's, and a proxy that fails at once"
    for k in [k for k in os.environ if k.startswith('AWS_')]: monkeypatch.delenv(k)
    for k, v in dict(AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_CONFIG_FILE='none', AWS_SHARED_CREDENTIALS_FILE='none', AWS_EC2_METADATA_DISABLED='true', HTTPS_PROXY='http://127.0.0.1:9').items(): monkeypatch.setenv(k, v)


@pytest.fixture
def infra(tmp_path):
    "A template and a page, so that a test may change them"
    for name, text in {'template.yaml': 'Resources: {}\n', 'web/index.html': '<title>bins</title>', 'web/app.js': 'let bins', 'web/icon.svg': '<svg/>'}.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    (tmp_path/'local.zip').write_bytes(b'code')
    return tmp_path


def plan_of(infra, **config): return stack_plan(StackConfig('bins', 'eu-west-1', **config), dict(local=infra/'local.zip'), infra=infra)


def without_policy(plan): return replace(plan, steps=tuple(s for s in plan.steps if s.operation != 'PutBucketPolicy')) # moto overlooks its condition


# ---------------------------------------------------------------- plans

@pytest.mark.parametrize('config', [
    StackConfig(), StackConfig(region='ap-southeast-2', access='iam', page=False), StackConfig(region='cn-north-1', page=False), StackConfig(account=ACCOUNT, access='key', key_sha256='a'*64),
    *(StackConfig(answer=a, endpoint=e, image='bin-counter:1.0') for a in ('local', 'endpoint') for e in ('realtime', 'serverless'))], ids=lambda c: f'{c.answer}-{c.endpoint}-{c.region}')
def test_every_request_is_one_that_aws_describes(config):
    plan = stack_plan(config)
    assert check_requests(plan) == sum(bool(s.service) for s in plan.steps) >= 9
    assert json.loads(json.dumps(plan.to_dict()))['name'] == config.stack
    known = dict(account=ACCOUNT, now='20261121', change_set=SET, **{f'{n}.{k}': 'a'*16 for n in ('local', 'endpoint', 'model') for k in ('sha256', 'short')}, **{'output.PageBucket': 'bins-page', 'output.DistributionId': 'E1'})
    whole = replace(plan, steps=tuple(replace(s, request=fill(s.request, known)) for s in plan.steps))
    assert unknown([s.request for s in whole.steps]) == [] and check_requests(whole) == check_requests(plan)


@pytest.mark.parametrize('request_, why', [
    (dict(Bucket='b', Key='k', Metadata=[]), 'Metadata'), (dict(Bucket='b'), 'Key'), (dict(Bucket='b', Key='k', CacheControll='x'), 'CacheControll'), (dict(Bucket='b', Key=7), 'Key')])
def test_a_wrong_request_is_refused_before_anything_is_sent(request_, why):
    plan = Plan('bins', 'eu-west-1', '', (Step('a bucket', 's3', 'CreateBucket', dict(Bucket='b')), Step('a file', 's3', 'PutObject', request_)))
    with pytest.raises(CloudError, match=why) as e: apply(plan, Answers(), say=lambda line: None)
    assert '\n' not in str(e.value)


def test_a_plan_needs_no_account_no_network_no_zip_and_no_boto3(tmp_path):
    code = ("import sys, json\nfrom bin_counter.stack import StackConfig, stack_plan\n"
            "plan = stack_plan(StackConfig(answer='endpoint', endpoint='realtime', image='counter:1'))\nprint(plan)\njson.dumps(plan.to_dict())\n"
            "print([m for m in ('boto3', 'botocore', 'urllib3', 'matplotlib', 'numpy') if m in sys.modules])")
    env = dict(PATH=os.environ['PATH'], HOME=str(tmp_path), HTTPS_PROXY='http://127.0.0.1:9', PYTHONPATH=str(ROOT))
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == '[]' and 'not built yet: dist/endpoint.zip, model.tar.gz' in out.stdout and 'ml.c5.large by the hour' in out.stdout


def test_the_same_content_has_the_same_key(infra):
    keys = lambda: [s.request['Key'] for s in plan_of(infra).steps if s.operation == 'PutObject']
    before = keys()
    assert keys() == before
    (infra/'local.zip').write_bytes(b'other')
    assert [a == b for a, b in zip(before, keys())] == [False] + [True]*4


def test_an_idle_endpoint_is_on_the_bill():
    idle, asked = (stack_plan(StackConfig(answer=a, endpoint='realtime', image='counter:1')) for a in ('local', 'endpoint'))
    hours = [[c.usd for c in p.charges if c.unit == 'hour of a machine'] for p in (idle, asked)]
    assert hours == [[pytest.approx(730*.102)]]*2


# ---------------------------------------------------------------- a strict order of answers

class Answers:
    "A session whose clients answer what was written down, in that order and to those requests; S3 is moto's"
    def __init__(self, **scripts):
        import boto3
        from botocore.stub import Stubber
        self.clients, self.stubs = {}, []
        for service, script in {'sts': [('get_caller_identity', {}, dict(Account=ACCOUNT))], **scripts}.items():
            client = boto3.client(service, 'eu-west-1')
            stub = Stubber(client)
            for operation, wanted, answer in script:
                if isinstance(answer, tuple): stub.add_client_error(operation, answer[0], answer[1], expected_params=wanted, http_status_code=answer[2] if len(answer) > 2 else 400)
                else: stub.add_response(operation, answer, wanted)
            stub.activate()
            self.clients[service] = client
            self.stubs.append(stub)

    def client(self, service, region_name=None, config=None):
        import boto3
        return self.clients.get(service) or boto3.client(service, region_name)

    def all_asked(self):
        for s in self.stubs: s.assert_no_pending_responses()


from botocore.stub import ANY

NONE = ('ValidationError', 'Stack with id bins does not exist')
OUTPUTS = [dict(OutputKey='PageBucket', OutputValue='bins-page'), dict(OutputKey='DistributionId', OutputValue='E1'), dict(OutputKey='PageUrl', OutputValue='https://d1.cloudfront.net/')]


def stack(state, **more): return dict(Stacks=[dict(StackName='bins', StackId=STACK, CreationTime=datetime(2026, 11, 21), StackStatus=state, **more)])
def event(n, name, state, reason='', token=None): return dict(StackId=STACK, EventId=str(n), StackName='bins', LogicalResourceId=name, ResourceType='AWS::S3::Bucket', Timestamp=datetime(2026, 11, 21), ResourceStatus=state, ResourceStatusReason=reason, **(dict(ClientRequestToken=token) if token else {}))
def change_set(state, changes=(), why=''): return dict(Status=state, StatusReason=why, Changes=[dict(Type='Resource', ResourceChange=dict(Action=a, LogicalResourceId=a, Replacement='False')) for a in changes])


def make(kind, plan):
    "The request for a change set, as the plan has it, for a new or an old stack"
    wanted = {**next(s.request for s in plan.steps if s.operation == 'CreateChangeSet'), 'ChangeSetType': kind, 'ChangeSetName': ANY, 'TemplateURL': ANY, 'Parameters': ANY}
    if kind == 'UPDATE': del wanted['OnStackFailure']
    return 'create_change_set', wanted, dict(Id=SET, StackId=STACK)


def describe(by='bins', answer=None): return 'describe_stacks', dict(StackName=by), answer
def events(token, *listed): return 'describe_stack_events', dict(StackName=STACK), dict(StackEvents=list(listed))


@pytest.fixture
def token(monkeypatch):
    "The moment of the deployment, held fast"
    import time
    monkeypatch.setattr(time, 'strftime', lambda *a: '20261121120000')
    return 'deploy-20261121120000'


def run(plan, session):
    said = []
    out = apply(plan, session, said.append, poll=0)
    session.all_asked()
    return out, said


def first_time(plan, token):
    return [describe(answer=NONE), make('CREATE', plan), ('describe_change_set', dict(ChangeSetName=SET), change_set('CREATE_IN_PROGRESS')), ('describe_change_set', dict(ChangeSetName=SET), change_set('CREATE_COMPLETE', ['Add', 'Add'])),
            ('execute_change_set', dict(StackName='bins', ChangeSetName=SET, ClientRequestToken=token), {}),
            describe(STACK, stack('CREATE_IN_PROGRESS')), events(token, event(2, 'Uploads', 'CREATE_IN_PROGRESS', token=token), event(1, 'bins', 'REVIEW_IN_PROGRESS')),
            describe(STACK, stack('CREATE_COMPLETE', Outputs=OUTPUTS)), events(token, event(4, 'bins', 'CREATE_COMPLETE', token=token), event(3, 'Uploads', 'CREATE_COMPLETE', token=token), event(2, 'Uploads', 'CREATE_IN_PROGRESS', token=token))]


def no_change(plan):
    return [describe(answer=stack('CREATE_COMPLETE')), make('UPDATE', plan), ('describe_change_set', dict(ChangeSetName=SET), change_set('FAILED', why="The submitted information didn't contain changes. Submit different information to create a change set.")),
            ('delete_change_set', dict(ChangeSetName=SET), {}), describe(answer=stack('CREATE_COMPLETE', Outputs=OUTPUTS))]


@pytest.fixture
def moto():
    from moto import mock_aws
    with mock_aws():
        import boto3
        s3 = boto3.client('s3', 'eu-west-1')
        s3.create_bucket(Bucket='bins-page', CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
        yield s3


INVALIDATION = ('create_invalidation', dict(DistributionId='E1', InvalidationBatch=dict(Paths=dict(Quantity=1, Items=['/*']), CallerReference='20261121120000')), {})


def test_from_nothing_to_a_page(infra, moto, token):
    plan = without_policy(plan_of(infra))
    out, said = run(plan, Answers(cloudformation=first_time(plan, token), cloudfront=[INVALIDATION]))
    assert out == dict(PageBucket='bins-page', DistributionId='E1', PageUrl='https://d1.cloudfront.net/')
    heads = {k: moto.head_object(Bucket='bins-page', Key=k) for k in ('index.html', 'app.js', 'icon.svg')}
    assert {k: (h['ContentType'], h['CacheControl']) for k, h in heads.items()} == {'index.html': ('text/html; charset=utf-8', 'no-cache'), 'app.js': ('text/javascript; charset=utf-8', 'no-cache'), 'icon.svg': ('image/svg+xml', 'public, max-age=86400')}
    code = f'bins-code-{ACCOUNT}-eu-west-1'
    zips = [o['Key'] for o in moto.list_objects_v2(Bucket=code)['Contents']]
    assert f'lambda/local-{bytes_hash(b"code")[:16]}.zip' in zips and moto.get_object(Bucket=code, Key=zips[0])['Body'].read() == b'code'
    assert moto.get_public_access_block(Bucket=code)['PublicAccessBlockConfiguration']['BlockPublicPolicy'] and moto.get_bucket_tagging(Bucket=code)['TagSet'] == [dict(Key='bin_counter', Value='bins')]
    assert '    add 2' in said and sum('Uploads' in line for line in said) == 1 # the beginning of a resource is not told, and nothing twice


def test_a_second_time_nothing_is_sent(infra, moto, token):
    plan = without_policy(plan_of(infra))
    run(plan, Answers(cloudformation=first_time(plan, token), cloudfront=[INVALIDATION]))
    out, said = run(plan, Answers(cloudformation=no_change(plan), cloudfront=[]))
    assert out['PageUrl'] and sum('it is there' in line for line in said) == 6 and '    nothing' in said and not [line for line in said if line.endswith(' MB')]


def test_one_changed_file_of_the_page_is_sent_alone(infra, moto, token):
    run(p := without_policy(plan_of(infra)), Answers(cloudformation=first_time(p, token), cloudfront=[INVALIDATION]))
    (infra/'web/app.js').write_text('let all = bins')
    plan = without_policy(plan_of(infra))
    _, said = run(plan, Answers(cloudformation=no_change(plan), cloudfront=[INVALIDATION]))
    assert [said[i - 1].split('  ')[-1] for i, line in enumerate(said) if line.endswith(' MB')] == ['page: app.js']


def test_a_file_that_is_built_after_the_plan(infra, moto, token):
    (infra/'local.zip').unlink()
    plan = without_policy(plan_of(infra))
    assert 'local.sha256' in unknown([s.request for s in plan.steps])
    with pytest.raises(CloudError, match='local.zip is not there: build it first'): apply(plan, Answers(sts=[]), poll=0)
    (infra/'local.zip').write_bytes(b'code')
    run(plan, Answers(cloudformation=first_time(plan, token), cloudfront=[INVALIDATION]))
    assert moto.head_object(Bucket=f'bins-code-{ACCOUNT}-eu-west-1', Key=f'lambda/local-{bytes_hash(b"code")[:16]}.zip')['Metadata'] == dict(sha256=bytes_hash(b'code'))


def fails(plan, session):
    with pytest.raises(CloudError) as e: apply(plan, session, lambda line: None, poll=0)
    session.all_asked()
    assert '\n' not in str(e.value)
    return str(e.value)


def test_a_first_deployment_that_fails_names_the_resource_and_what_is_left(infra, moto, token):
    plan = without_policy(plan_of(infra))
    script = first_time(plan, token)[:5] + [
        describe(STACK, stack('CREATE_FAILED')), events(token, event(3, 'Table', 'CREATE_FAILED', 'Resource creation cancelled', token), event(2, 'Uploads', 'CREATE_FAILED', 'bins-uploads already\nexists', token)),
        describe(STACK, stack('DELETE_IN_PROGRESS')), events(token), describe(STACK, stack('DELETE_COMPLETE')), events(token)]
    line = fails(plan, Answers(cloudformation=script))
    assert 'step 10 of 14 (make or change the stack): Uploads (AWS::S3::Bucket): bins-uploads already exists; what was made is removed; the 9 steps before it are done' in line


def test_a_change_that_fails_goes_back(infra, moto, token):
    plan = without_policy(plan_of(infra))
    script = [describe(answer=stack('UPDATE_COMPLETE')), make('UPDATE', plan), ('describe_change_set', dict(ChangeSetName=SET), change_set('CREATE_COMPLETE', ['Modify'])), ('execute_change_set', dict(StackName='bins', ChangeSetName=SET, ClientRequestToken=token), {}),
              describe(STACK, stack('UPDATE_ROLLBACK_IN_PROGRESS')), events(token, event(2, 'Endpoint', 'UPDATE_FAILED', 'no capacity', token)), describe(STACK, stack('UPDATE_ROLLBACK_COMPLETE')), events(token)]
    assert 'no capacity; the stack is what it was before' in fails(plan, Answers(cloudformation=script))


def test_a_template_that_is_refused_leaves_no_empty_stack(infra, moto, token):
    plan = without_policy(plan_of(infra))
    script = [describe(answer=NONE), make('CREATE', plan), ('describe_change_set', dict(ChangeSetName=SET), change_set('FAILED', why='Rule KeyIsKnown:\n Access=key needs KeySha256')), ('delete_stack', dict(StackName=STACK), {})]
    assert 'does not take the template or its parameters: Rule KeyIsKnown: Access=key needs KeySha256' in fails(plan, Answers(cloudformation=script))


@pytest.mark.parametrize('state, why', [('ROLLBACK_COMPLETE', 'remove it with bin_teardown --stack bins'), ('UPDATE_IN_PROGRESS', 'wait until that is over'), ('UPDATE_ROLLBACK_FAILED', 'continue the rollback'), ('DELETE_FAILED', 'bin_teardown')])
def test_a_stack_that_cannot_be_changed_is_not_touched(state, why, infra, moto, token):
    plan = without_policy(plan_of(infra))
    assert why in fails(plan, Answers(cloudformation=[describe(answer=stack(state))]))


@pytest.mark.parametrize('answer, why', [
    (('ExpiredToken', 'The security token included in the request is expired'), 'sign in first'), (('InvalidClientTokenId', 'invalid'), 'sign in first'),
    (('AccessDenied', 'User: arn:aws:iam::1:user/a is not authorized to perform: sts:GetCallerIdentity'), 'you need sts:GetCallerIdentity'), (dict(Account='999999999999'), 'your credentials are of account 999999999999, the plan is for 123456789012')])
def test_the_wrong_credentials_change_nothing(answer, why, infra):
    assert why in fails(plan_of(infra, account=ACCOUNT), Answers(sts=[('get_caller_identity', {}, answer)]))


@pytest.mark.parametrize('answer, why', [
    (('403', 'Forbidden', 403), 'belongs to another account, or you lack s3:ListBucket'), (('404', 'Not Found', 404), None), (('500', 'Internal', 500), 'Internal')])
def test_a_bucket_of_a_stranger_is_never_used(answer, why, infra):
    wanted = dict(Bucket=f'bins-code-{ACCOUNT}-eu-west-1', ExpectedBucketOwner=ACCOUNT)
    script = [('head_bucket', wanted, answer)] + ([] if why else [('create_bucket', dict(Bucket=wanted['Bucket'], ObjectOwnership='BucketOwnerEnforced', CreateBucketConfiguration=dict(LocationConstraint='eu-west-1')), ('TooManyBuckets', 'You have attempted to create more buckets than allowed'))])
    line = fails(plan_of(infra), Answers(s3=script))
    assert (why or 'a limit of the account is reached (You have attempted to create more buckets than allowed)') in line and 'the 1 steps before it are done' in line


@pytest.mark.parametrize('answer, why', [(('403', 'Forbidden', 403), 'you need s3:GetObject'), (('NoSuchBucket', 'no such bucket', 404), None)])
def test_an_upload_that_is_denied_names_the_right(answer, why, infra):
    step = next(s for s in plan_of(infra, account=ACCOUNT).steps if s.operation == 'PutObject')
    plan = Plan('bins', 'eu-west-1', ACCOUNT, (step,))
    head = ('head_object', {k: step.request[k] for k in ('Bucket', 'Key', 'ExpectedBucketOwner')}, answer)
    script = [head] if why else [head, ('put_object', {**step.request, 'Body': ANY}, ('AccessDenied', 'Access Denied', 403))]
    assert (why or 'you need s3:PutObject') in fails(plan, Answers(s3=script))


def test_no_credentials_and_no_network_are_one_line_each(infra, monkeypatch):
    plan = plan_of(infra)
    with pytest.raises(CloudError, match='cannot be reached'): # the proxy is closed
        apply(replace(plan, region='us-east-1'), say=lambda line: None)
    for k in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.delenv(k)
    with pytest.raises(CloudError, match='no AWS credentials: sign in first'): apply(plan, say=lambda line: None)
    monkeypatch.setenv('AWS_PROFILE', 'nobody')
    with pytest.raises(CloudError, match='nobody.* check AWS_PROFILE'): apply(plan, say=lambda line: None)


def test_a_file_that_changes_between_plan_and_upload_is_not_sent(infra, moto):
    plan = without_policy(plan_of(infra))
    (infra/'local.zip').write_bytes(b'somebody was faster')
    with pytest.raises(CloudError, match='has changed since the plan was made'): apply(plan, Answers(), lambda line: None, poll=0)
    assert 'Contents' not in moto.list_objects_v2(Bucket=f'bins-code-{ACCOUNT}-eu-west-1')


def test_events_of_earlier_changes_are_not_read():
    "An old stack has thousands of events on many pages; the first page with others ends the reading"
    page = dict(StackEvents=[event(9, 'Api', 'UPDATE_COMPLETE', token='t'), event(8, 'Old', 'CREATE_FAILED', 'long ago', 'other')], NextToken='more')
    session = Answers(cloudformation=[describe(STACK, stack('UPDATE_COMPLETE')), ('describe_stack_events', dict(StackName=STACK), page)], sts=[])
    found, seen = wait_for_stack(Asker('eu-west-1', session, lambda line: None, 0), STACK, 't')
    session.all_asked()
    assert [e['LogicalResourceId'] for e in seen] == ['Api']


# ---------------------------------------------------------------- status and teardown

def test_status_asks_both_regions_and_shows_what_was_left():
    arns = [f'arn:aws:s3:::bins-code-{ACCOUNT}-eu-west-1', f'arn:aws:sns:eu-west-1:{ACCOUNT}:bins-Alarms-1', STACK]
    tags = ('get_resources', dict(TagFilters=[dict(Key='bin_counter', Values=['bins'])]), dict(ResourceTagMappingList=[dict(ResourceARN=a) for a in arns]))
    listed = [dict(LogicalResourceId=n, PhysicalResourceId=p, ResourceType=t, LastUpdatedTimestamp=datetime(2026, 1, 1), ResourceStatus='CREATE_COMPLETE') for n, p, t in (
        ('Alarms', arns[1], 'AWS::SNS::Topic'), ('Fails', 'bins-Fails', 'AWS::CloudWatch::Alarm'), ('Endpoint', f'arn:aws:sagemaker:eu-west-1:{ACCOUNT}:endpoint/bins', 'AWS::SageMaker::Endpoint'))]
    times = dict(CreationTime=datetime(2026, 1, 1))
    endpoint = [('describe_endpoint', dict(EndpointName='bins'), dict(EndpointName='bins', EndpointArn='arn:aws:sagemaker:eu-west-1:1:endpoint/bins', EndpointConfigName='c', EndpointStatus='InService', LastModifiedTime=datetime(2026, 1, 1), **times)),
                ('describe_endpoint_config', dict(EndpointConfigName='c'), dict(EndpointConfigName='c', EndpointConfigArn='arn:aws:sagemaker:eu-west-1:1:endpoint-config/c', ProductionVariants=[dict(VariantName='AllTraffic', ModelName='m', InstanceType='ml.x9.large', InitialInstanceCount=1)], **times))]
    session = Answers(cloudformation=[describe(answer=stack('CREATE_COMPLETE', Outputs=OUTPUTS))]*2 + [('list_stack_resources', dict(StackName='bins'), dict(StackResourceSummaries=listed))], resourcegroupstaggingapi=[tags, tags], sagemaker=endpoint, sts=[])
    seen = status('bins', 'eu-west-1', session)
    session.all_asked()
    assert [(r.kind, r.in_stack) for r in seen.resources] == [('AWS::SNS::Topic', True), ('AWS::CloudWatch::Alarm', True), ('AWS::SageMaker::Endpoint', True), ('s3', False)]
    assert seen.resources[2].usd_hour is None and seen.usd_hour == pytest.approx(.1/730) and 'PageUrl: https://d1.cloudfront.net/' in str(seen)
    assert str(seen).splitlines()[-3].split()[-1] == '?'


def test_status_of_nothing(moto):
    seen = status('nowhere', 'eu-west-1')
    assert (seen.state, seen.resources) == ('absent', ()) and str(seen).splitlines() == ['nowhere in eu-west-1: absent', 'nothing is there']


def test_a_bucket_with_versions_is_emptied_whole(moto):
    moto.put_bucket_versioning(Bucket='bins-page', VersioningConfiguration=dict(Status='Enabled'))
    for i in range(4): moto.put_object(Bucket='bins-page', Key=f'{i % 2}', Body=b'x')
    moto.delete_object(Bucket='bins-page', Key='0') # leaves a marker
    assert empty_bucket(Asker('eu-west-1'), 'bins-page', ACCOUNT) == 5
    assert empty_bucket(Asker('eu-west-1'), 'bins-page', ACCOUNT) == 0
    assert empty_bucket(Asker('eu-west-1'), 'not-there', ACCOUNT) == 0
    for i in range(1_002): moto.put_object(Bucket='bins-page', Key=f'many/{i}', Body=b'x') # more than one page
    assert empty_bucket(Asker('eu-west-1'), 'bins-page', ACCOUNT) == 1_002
    moto.delete_bucket(Bucket='bins-page')


def test_a_bucket_without_our_tag_stays(moto):
    name = f'bins-code-{ACCOUNT}-eu-west-1'
    moto.create_bucket(Bucket=name, CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
    moto.put_object(Bucket=name, Key='precious', Body=b'x')
    for tags in ([], [dict(Key='bin_counter', Value='other')]):
        if tags: moto.put_bucket_tagging(Bucket=name, Tagging=dict(TagSet=tags))
        done = teardown('bins', 'eu-west-1', say=lambda line: None, poll=0)
        assert (done.existed, done.objects, done.buckets) == (False, 0, ()) and 'there was no stack bins' in str(done)
    assert moto.get_object(Bucket=name, Key='precious')


def deletion(state, go, *listed): return [describe(answer=stack('CREATE_COMPLETE' if not go else 'DELETE_FAILED'))]*2 + [('list_stack_resources', dict(StackName='bins'), dict(StackResourceSummaries=[dict(LogicalResourceId='Uploads', PhysicalResourceId='bins-page', ResourceType='AWS::S3::Bucket', LastUpdatedTimestamp=datetime(2026, 1, 1), ResourceStatus='CREATE_COMPLETE')])),
    ('delete_stack', dict(StackName=STACK, ClientRequestToken=f'teardown-20261121120000-{go}'), {}), describe(STACK, stack(state)), events('t', *listed)]


def tags_of(*arns): return [('get_resources', dict(TagFilters=[dict(Key='bin_counter', Values=['bins'])]), dict(ResourceTagMappingList=[dict(ResourceARN=a) for a in arns]))]*2


def test_a_photo_that_arrives_during_the_deletion(moto, token):
    "The first deletion fails on a bucket that is not empty; the second goes through, and what still carries the tag is told"
    moto.put_object(Bucket='bins-page', Key='photos/late.jpg', Body=b'x')
    first = deletion('DELETE_FAILED', 0, event(1, 'Uploads', 'DELETE_FAILED', 'The bucket you tried to delete is not empty', 'teardown-20261121120000-0'))
    session = Answers(cloudformation=[describe(answer=stack('CREATE_COMPLETE'))] + first + deletion('DELETE_COMPLETE', 1), resourcegroupstaggingapi=tags_of(f'arn:aws:dynamodb:eu-west-1:{ACCOUNT}:table/kept', STACK))
    done = teardown('bins', 'eu-west-1', ACCOUNT, session, lambda line: None, poll=0)
    session.all_asked()
    assert (done.existed, done.objects) == (True, 1) and done.left == (f'arn:aws:dynamodb:eu-west-1:{ACCOUNT}:table/kept',) and 'still listed' in str(done)


def test_a_stack_that_will_not_go_says_why(moto, token):
    scripts = [step for go in (0, 1) for step in deletion('DELETE_FAILED', go, event(go, 'ModelRole', 'DELETE_FAILED', 'Cannot delete entity, must detach all policies first', f'teardown-20261121120000-{go}'))]
    session = Answers(cloudformation=[describe(answer=stack('CREATE_COMPLETE'))] + scripts)
    with pytest.raises(CloudError, match=r'could not be deleted: ModelRole .*must detach all policies first; run the same command again'): teardown('bins', 'eu-west-1', session=session, say=lambda line: None, poll=0)
    session.all_asked()


def test_nothing_is_removed_from_the_wrong_account(moto):
    session = Answers(sts=[('get_caller_identity', {}, dict(Account='999999999999'))], cloudformation=[])
    with pytest.raises(CloudError, match='set AWS_PROFILE to the right one'): teardown('bins', 'eu-west-1', ACCOUNT, session)


# ---------------------------------------------------------------- prices

@pytest.mark.parametrize('entry, why', [
    ([], 'write an object'), (dict(usd=1), 'needs usd and date'), (dict(usd=-1, date='2026'), 'not a number of dollars'), (dict(usd=True, date='2026'), 'not a number of dollars'), (dict(usd=float('inf'), date='2026'), 'not finite|not a number|JSON'),
    (dict(usd=1, date='21.11.2026'), 'must be written as'), (dict(usd=1, date='2026', pirce=2), 'write an object with some of')])
def test_a_price_file_that_cannot_be_used(entry, why, tmp_path):
    (tmp_path/'p.json').write_text(json.dumps({'lambda.arm64': entry}))
    with pytest.raises(ConfigError, match=why) as e: read_prices(tmp_path/'p.json')
    assert '\n' not in str(e.value) and 'lambda.arm64' in str(e.value)


def test_a_new_price_must_say_what_it_is(tmp_path):
    (tmp_path/'p.json').write_text(json.dumps({'sagemaker.ml.new.large': dict(usd=1, date='2026')}))
    with pytest.raises(ConfigError, match='is new: say its service and unit too'): read_prices(tmp_path/'p.json')


def test_every_price_names_its_page_and_is_used():
    "A price that nothing asks for would grow old unseen"
    assert all(p.source.startswith('https://aws.amazon.com/') and p.unit and p.service for p in PRICES.values())
    works = [Workload(1000, a, architecture=m, page=p, tracing=True) for a in ('local', 'realtime', 'serverless') for m in ('arm64', 'x86_64') for p in (True, False)]
    units = {(c.service, c.unit) for w in works for c in monthly_charges(w)}
    assert {(p.service, p.unit) for p in PRICES.values()} <= units


@pytest.mark.parametrize('answer', ['local', 'realtime', 'serverless'])
def test_more_never_costs_less(answer):
    bills = [total(monthly_charges(Workload(n, answer))) for n in (0, 10, 1000, 10**5, 10**7, 10**9)]
    assert bills == sorted(bills) and all(total(monthly_charges(Workload(n, answer), free=True)) <= b for n, b in zip((0, 10, 1000, 10**5, 10**7, 10**9), bills))
    assert total(monthly_charges(Workload(1000, answer, kilobytes=3000))) > total(monthly_charges(Workload(1000, answer)))


def test_a_bill_worked_out_by_hand():
    "One million photos by the API, 0.1 s at 1769 MB, without a page: requests, seconds, and what is watched"
    w = Workload(1_000_000, seconds=.1, memory=1769, by_bucket=0, page=False)
    by_hand = .20 + 1e6*.12*1769/1024*.0000133334 + 1.00 + 1*.09 + 2*.50 + 2*.03 + 5*.10 + 9*.30
    assert total(monthly_charges(w)) == pytest.approx(by_hand)
