"The AWS template: what exists when, who may do what, and that it agrees with the page, the Lambda's code and the plan."
import ast, itertools, json, os, re, shutil, subprocess
from pathlib import Path

import pytest
import yaml

from bin_counter.core import ConfigError
from bin_counter.stack import StackConfig, stack_parameters

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT/'infra/template.yaml'


class Loader(yaml.SafeLoader):
    "YAML with CloudFormation's short forms, written out"


def _long_form(loader, suffix, node):
    name = suffix if suffix in ('Ref', 'Condition') else f'Fn::{suffix}'
    value = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_mapping(node, deep=True)
    return {name: value.split('.', 1) if suffix == 'GetAtt' and isinstance(value, str) else value}


Loader.add_multi_constructor('!', _long_form)


def load(text): return yaml.load(text, Loader)


T = load(TEMPLATE.read_text())
R = T['Resources']


def of_type(kind): return {n: r for n, r in R.items() if r['Type'] == kind}


def walk(value):
    "Every dict and list inside of a value"
    yield value
    for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else (): yield from walk(v)


def as_list(x): return x if isinstance(x, list) else [x]


def statements(document):
    "Statements of a policy, also those behind a condition"
    for s in document['Statement']: yield s['Fn::If'][1] if 'Fn::If' in s else s


def role_statements(): return [(n, s) for n, r in of_type('AWS::IAM::Role').items() for p in r['Properties']['Policies'] for s in statements(p['PolicyDocument'])]


# ---------------------------------------------------------------- the tools that AWS gives

def lint(text):
    from cfnlint.api import lint as cfn_lint
    return [f'{m.rule.id} {m.message}' for m in cfn_lint(text, regions=['us-east-1', 'eu-west-1'])]


def test_cfn_lint_has_nothing_to_say():
    "Not even a warning; and it does speak where something is wrong"
    text = TEMPLATE.read_text()
    assert lint(text) == []
    assert [m for m in lint(text.replace('BillingMode:', 'BillingMood:')) if m.startswith('E')]


def sam():
    found = os.environ.get('BIN_COUNTER_SAM') or shutil.which('sam')
    if not found: pytest.skip('sam is not here: pip install aws-sam-cli into an environment of its own and set BIN_COUNTER_SAM')
    return Path(found)


def test_sam_has_nothing_to_say(tmp_path):
    env = {**os.environ, 'SAM_CLI_TELEMETRY': '0', 'AWS_DEFAULT_REGION': 'us-east-1', 'HTTPS_PROXY': 'http://127.0.0.1:9', 'HOME': str(tmp_path)}
    out = subprocess.run([sam(), 'validate', '--lint', '-t', TEMPLATE], capture_output=True, text=True, env=env)
    assert out.returncode == 0 and 'warning' not in (out.stdout + out.stderr).lower(), out.stdout + out.stderr


def test_no_yaml_that_cloudformation_cannot_read():
    "Its documentation excludes anchors, aliases and merged keys"
    kinds = {type(t).__name__ for t in yaml.scan(TEMPLATE.read_text())}
    assert not kinds & {'AnchorToken', 'AliasToken'} and '<<:' not in TEMPLATE.read_text()


# ---------------------------------------------------------------- rights

ALIASES = {('s3', 'ListBucket'), ('s3', 'ListBucketVersions'), ('s3', 'ListAllMyBuckets'), ('s3', 'GetObjectVersion'), ('s3', 'DeleteObjectVersion'), ('lambda', 'InvokeFunction'), ('sts', 'AssumeRole')}
NAMES = {'cloudwatch': ['cloudwatch'], 'logs': ['logs'], 'sagemaker': ['sagemaker', 'sagemaker-runtime'], 'states': ['stepfunctions'], 'execute-api': []} # IAM prefix -> botocore's services


def known_actions(prefix):
    "Actions that IAM knows of a service: botocore's operations, and the few that are named otherwise"
    import botocore.session
    session = botocore.session.get_session()
    there = set(session.get_available_services())
    names = {op for s in NAMES.get(prefix, [prefix]) if s in there for op in session.get_service_model(s).operation_names}
    return names | {a for p, a in ALIASES if p == prefix}


def strange_actions(actions):
    "Actions that do not exist, or wildcards that stand for nothing"
    out = []
    for action in actions:
        prefix, _, name = action.partition(':')
        pattern = re.compile(re.escape(name).replace(r'\*', '.*').replace(r'\?', '.'), re.I)
        if not any(pattern.fullmatch(a) for a in known_actions(prefix)): out.append(action)
    return out


def all_actions(): return sorted({a for _, s in role_statements() for a in as_list(s['Action'])} | {p['Properties']['Action'] for p in of_type('AWS::Lambda::Permission').values()})


def test_every_action_exists():
    assert len(all_actions()) > 12
    assert strange_actions(all_actions()) == []


@pytest.mark.parametrize('action, good', [
    ('s3:GetObject', True), ('s3:GetObjekt', False), ('s3:Get*', True), ('s3:Gett*', False), ('s3:ListBucket', True), ('s3:ListBuckets*', True), ('s3:ListBukket', False),
    ('logs:PutLogEvents', True), ('logs:PutLogEvent', False), ('xray:PutTraceSegments', True), ('xray:PutTraceSegment', False), ('sagemaker:InvokeEndpoint', True),
    ('sagemaker-runtime:InvokeEndpoint', False), ('lambda:InvokeFunction', True), ('lambda:Invoke?unction', True), ('cloudwatch:PutMetricData', True), ('nothing:GetObject', False), ('dynamodb:putitem', True)])
def test_a_mistyped_action_is_caught(action, good):
    "The control: without it, the test above could pass for any name"
    if action == 'sagemaker-runtime:InvokeEndpoint': assert 'sagemaker-runtime' not in {a.split(':')[0] for a in all_actions()}
    else: assert (strange_actions([action]) == []) == good


EVERYWHERE = {('LocalFunctionRole', 'Trace'): 'X-Ray has no resources', ('EndpointFunctionRole', 'Trace'): 'X-Ray has no resources',
              ('ModelRole', 'SignInToTheRegistry'): 'a token of ECR is for the registry as a whole', ('ModelRole', 'CountItsRequests'): 'CloudWatch metrics have no resources; a condition names the namespaces'}


def test_no_right_without_bounds():
    "No wildcard in an action, and the star as a resource only where AWS knows nothing narrower"
    assert not [a for a in all_actions() if '*' in a or '?' in a]
    assert {(n, s['Sid']) for n, s in role_statements() if '*' in as_list(s['Resource'])} == set(EVERYWHERE)
    for n, s in role_statements(): assert s['Effect'] == 'Allow' and 'NotAction' not in s and 'NotResource' not in s and s['Sid']


def test_each_function_has_a_role_of_its_own_and_no_managed_policy():
    roles = of_type('AWS::IAM::Role')
    used = [r['Properties']['Role']['Fn::GetAtt'][0] for r in of_type('AWS::Serverless::Function').values()] + [r['Properties']['ExecutionRoleArn']['Fn::GetAtt'][0] for r in of_type('AWS::SageMaker::Model').values()]
    assert sorted(used) == sorted(roles)
    assert not [n for n, r in roles.items() if 'ManagedPolicyArns' in r['Properties']]
    trusted = {n: [as_list(s['Principal']['Service']) for s in r['Properties']['AssumeRolePolicyDocument']['Statement']] for n, r in roles.items()}
    assert trusted == {'LocalFunctionRole': [['lambda.amazonaws.com']], 'EndpointFunctionRole': [['lambda.amazonaws.com']], 'ModelRole': [['sagemaker.amazonaws.com']]}


BY_LAMBDA = {'logs:CreateLogStream', 'logs:PutLogEvents', 'sqs:SendMessage', 'xray:PutTraceSegments', 'xray:PutTelemetryRecords'} # the service uses these, no line of ours does
CODE = {'s3:PutObject': 'generate_presigned_post', 's3:ListBucket': 'get_object', 's3:GetObject': 'get_object', 'dynamodb:GetItem': 'get_item', 'dynamodb:PutItem': 'put_item', 'sns:Publish': 'publish', 'sagemaker:InvokeEndpoint': 'invoke_endpoint'}


def invoke_source():
    path = ROOT/'bin_counter/invoke.py'
    if not path.exists(): pytest.skip('chapter invoke is not there')
    return path.read_text()


def test_the_functions_may_do_what_their_code_does_and_no_more():
    called = set(re.findall(r'\.(' + '|'.join({*CODE.values(), 'put_object', 'delete_object', 'list_objects_v2', 'update_item', 'query', 'scan'}) + r')\(', invoke_source()))
    granted = {n: {a for m, s in role_statements() if m == n for a in as_list(s['Action'])} - BY_LAMBDA for n in ('LocalFunctionRole', 'EndpointFunctionRole')}
    assert {CODE[a] for a in set().union(*granted.values())} == called - {'put_object'} # answers as files are for deployments without a table
    assert granted['EndpointFunctionRole'] - granted['LocalFunctionRole'] == {'sagemaker:InvokeEndpoint'}


def test_a_function_writes_only_uploads_and_reads_only_photos():
    keys = {s['Sid']: [r['Fn::Sub'].rsplit('/', 2)[-2] for r in as_list(s['Resource'])] for n, s in role_statements() if n == 'LocalFunctionRole' and s['Sid'] in ('ReadPhotos', 'SignUploads')}
    assert keys == {'ReadPhotos': ['uploads', 'photos'], 'SignUploads': ['uploads']}


# ---------------------------------------------------------------- buckets

def policies_of(bucket): return [p['Properties']['PolicyDocument'] for p in of_type('AWS::S3::BucketPolicy').values() if p['Properties']['Bucket'] == {'Ref': bucket}]


@pytest.mark.parametrize('name', list(of_type('AWS::S3::Bucket')))
def test_no_bucket_is_public(name):
    p = R[name]['Properties']
    assert p['PublicAccessBlockConfiguration'] == dict.fromkeys(('BlockPublicAcls', 'BlockPublicPolicy', 'IgnorePublicAcls', 'RestrictPublicBuckets'), True)
    assert p['OwnershipControls'] == {'Rules': [{'ObjectOwnership': 'BucketOwnerEnforced'}]} and 'AccessControl' not in p and 'WebsiteConfiguration' not in p
    assert p['BucketEncryption']['ServerSideEncryptionConfiguration']
    rules = [s for d in policies_of(name) for s in statements(d)]
    assert not [s for s in rules if s['Effect'] == 'Allow' and '*' in str(s['Principal'])]
    tls = next(s for s in rules if s.get('Condition') == {'Bool': {'aws:SecureTransport': 'false'}})
    assert (tls['Effect'], tls['Principal'], tls['Action']) == ('Deny', '*', 's3:*') and len(tls['Resource']) == 2


def test_photos_do_not_stay_forever_and_only_the_page_may_put_them():
    p = R['Uploads']['Properties']
    rules = {r['Id']: r for r in p['LifecycleConfiguration']['Rules']}
    assert rules['uploads']['ExpirationInDays'] == 1 and rules['photos']['ExpirationInDays'] == {'Ref': 'PhotoDays'} and rules['capture']['Prefix'] == 'capture/'
    cors = p['CorsConfiguration']['Fn::If'][1]['CorsRules']
    assert len(cors) == 1 and cors[0]['AllowedMethods'] == ['POST'] and '*' not in json.dumps(cors)
    assert 'CorsConfiguration' not in R['Api']['Properties'] # the page asks its own origin
    event = p['NotificationConfiguration']['LambdaConfigurations']
    assert [e['Filter']['S3Key']['Rules'] for e in event] == [[{'Name': 'prefix', 'Value': 'photos/'}]]


# ---------------------------------------------------------------- failures are heard of

@pytest.mark.parametrize('name', list(of_type('AWS::CloudWatch::Alarm')))
def test_each_alarm_has_an_action(name):
    p = R[name]['Properties']
    assert p['AlarmActions'] == p['OKActions'] == [{'Ref': 'Alarms'}] and len(p['AlarmDescription']) > 30 and p['TreatMissingData'] == 'notBreaching'


def test_what_must_be_watched_is_watched():
    watched = {(a['Properties']['Namespace'], a['Properties']['MetricName']) for a in of_type('AWS::CloudWatch::Alarm').values()}
    assert watched == {('AWS/ApiGateway', '5xx'), ('AWS/Lambda', 'Errors'), ('AWS/Lambda', 'Duration'), ('AWS/Lambda', 'Throttles'), ('AWS/SQS', 'ApproximateNumberOfMessagesVisible'),
                       ('AWS/SageMaker', 'Invocation5XXErrors'), ('AWS/SageMaker', 'ModelLatency')}
    slow = R['FunctionIsSlow']['Properties']['Threshold']/1000
    assert .7 < slow/T['Globals']['Function']['Timeout'] < .9


def test_cloudwatch_can_reach_the_topic_of_the_alarms():
    "A topic encrypted with alias/aws/sns takes nothing from CloudWatch, and nobody is told"
    assert 'KmsMasterKeyId' not in R['Alarms']['Properties'] and R['Mismatches']['Properties']['KmsMasterKeyId'] == 'alias/aws/sns'
    allowed = [s for p in of_type('AWS::SNS::TopicPolicy').values() for s in p['Properties']['PolicyDocument']['Statement']]
    assert [s['Principal'] for s in allowed] == [{'Service': 'cloudwatch.amazonaws.com'}] and allowed[0]['Condition'] == {'StringEquals': {'aws:SourceAccount': {'Ref': 'AWS::AccountId'}}}


def test_every_log_ends():
    groups = of_type('AWS::Logs::LogGroup')
    assert all(g['Properties']['RetentionInDays'] == {'Ref': 'LogDays'} for g in groups.values())
    used = {json.dumps(f['Properties']['LoggingConfig']['LogGroup']) for f in of_type('AWS::Serverless::Function').values()}
    assert used == {json.dumps({'Ref': n}) for n in ('LocalFunctionLogs', 'EndpointFunctionLogs')}
    assert R['Endpoint']['DependsOn'] == 'EndpointLogs' and R['Stage']['Properties']['AccessLogSettings']['DestinationArn'] == {'Fn::GetAtt': ['ApiLogs', 'Arn']}


# ---------------------------------------------------------------- everything can be found

def test_all_that_can_be_tagged_is_tagged():
    from cfnlint.schema import PROVIDER_SCHEMA_MANAGER
    lacking = []
    for name, r in R.items():
        if r['Type'].startswith('AWS::Serverless'): continue # below
        if 'Tags' not in PROVIDER_SCHEMA_MANAGER.get_resource_schema('us-east-1', r['Type']).schema['properties']: continue
        if r['Properties'].get('Tags') not in ([{'Key': 'bin_counter', 'Value': {'Ref': 'AWS::StackName'}}], {'bin_counter': {'Ref': 'AWS::StackName'}}): lacking.append(name)
    assert lacking == []
    assert sum('Tags' in r['Properties'] for r in R.values()) > 20


def test_each_function_keeps_the_events_that_failed():
    assert T['Globals']['Function']['DeadLetterQueue'] == {'Type': 'SQS', 'TargetArn': {'Fn::GetAtt': ['DeadLetters', 'Arn']}}
    assert not [n for n, f in of_type('AWS::Serverless::Function').items() if 'DeadLetterQueue' in f['Properties']] # none has one of its own
    for n in ('LocalFunctionRole', 'EndpointFunctionRole'): assert [s['Resource'] for m, s in role_statements() if (m, s['Sid']) == (n, 'KeepFailures')] == [{'Fn::GetAtt': ['DeadLetters', 'Arn']}]


EXPAND = """
import json, sys
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
template = json.load(sys.stdin)
values = {n: p.get('Default', 'code') for n, p in template['Parameters'].items()}
print(json.dumps(Translator({}, Parser()).translate(template, values)['Resources']))
"""


@pytest.fixture(scope='module')
def expanded():
    "The resources as AWS expands them, by the translator that comes with sam"
    env = {**os.environ, 'AWS_DEFAULT_REGION': 'us-east-1'}
    out = subprocess.run([sam().with_name('python'), '-c', EXPAND], input=json.dumps(T), capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_what_sam_makes_of_the_functions(expanded):
    functions = {n: r['Properties'] for n, r in expanded.items() if r['Type'] == 'AWS::Lambda::Function'}
    assert set(functions) == {'LocalFunction', 'EndpointFunction'}
    for n, p in functions.items():
        assert p['DeadLetterConfig'] == {'TargetArn': {'Fn::GetAtt': ['DeadLetters', 'Arn']}} and p['Role'] == {'Fn::GetAtt': [f'{n}Role', 'Arn']}
        assert {'Key': 'bin_counter', 'Value': {'Ref': 'AWS::StackName'}} in p['Tags'] and p['Timeout'] == 29
        assert p['Code']['S3Bucket'] == {'Ref': 'CodeBucket'} and p['LoggingConfig']['LogGroup'] == {'Ref': f'{n}Logs'}
    assert {n for n, r in expanded.items() if r['Type'] == 'AWS::IAM::Role'} == set(of_type('AWS::IAM::Role')) # SAM adds none of its own
    retries = [r['Properties'] for r in expanded.values() if r['Type'] == 'AWS::Lambda::EventInvokeConfig']
    assert len(retries) == 2 and all(r['MaximumRetryAttempts'] == 2 for r in retries)


def test_the_handlers_exist_and_get_their_environment():
    tree = ast.parse(invoke_source())
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert {f['Properties']['Handler'] for f in of_type('AWS::Serverless::Function').values()} == {'bin_counter.invoke.local_handler', 'bin_counter.invoke.endpoint_handler'}
    assert {'local_handler', 'endpoint_handler'} <= names
    from bin_counter.invoke import Settings
    env = set(T['Globals']['Function']['Environment']['Variables']) | set(R['EndpointFunction']['Properties']['Environment']['Variables'])
    said = Settings.from_env({k: 'a'*64 if 'SHA256' in k else 'photos.example.com' for k in env})
    assert all((said.endpoint, said.hosts, said.bucket, said.table, said.topic, said.key_sha256)) # every variable is one that the code reads


def test_the_table_has_the_key_that_the_code_writes():
    assert R['Answers']['Properties']['KeySchema'] == [{'AttributeName': 'id', 'KeyType': 'HASH'}]
    assert "'id': f'{bucket}/{key}'" in invoke_source()


# ---------------------------------------------------------------- the page

def csp(text): return {d.split()[0]: d.split()[1:] for d in text.split(';') if d.strip()}


HEADER = R['PageHeaders']['Properties']['ResponseHeadersPolicyConfig']['SecurityHeadersConfig']['ContentSecurityPolicy']['ContentSecurityPolicy']['Fn::Sub']


def filled(text, region): return text.replace('${AWS::StackName}', 'bins').replace('${AWS::AccountId}', '123456789012').replace('${AWS::Region}', region).replace('${AWS::URLSuffix}', 'amazonaws.com')


def test_the_page_is_as_strict_as_it_says_itself():
    page = csp(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', (ROOT/'infra/web/index.html').read_text())[1])
    header = csp(HEADER)
    assert {k: v for k, v in header.items() if k not in ('connect-src', 'frame-ancestors')} == {k: v for k, v in page.items() if k != 'connect-src'}
    assert header['default-src'] == header['frame-ancestors'] == ["'none'"] and 'unsafe' not in HEADER and '*' not in HEADER


@pytest.mark.parametrize('region', ['us-east-1', 'eu-west-1'])
def test_the_page_may_reach_the_bucket_under_the_name_that_is_signed(region, monkeypatch):
    invoke_source()
    from bin_counter import invoke
    for k, v in dict(AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_DEFAULT_REGION=region).items(): monkeypatch.setenv(k, v)
    invoke._client.cache_clear()
    bucket = filled(R['Uploads']['Properties']['BucketName']['Fn::Sub'], region)
    form = invoke.offer_upload(b'{"content_type": "image/jpeg", "bytes": 1000}', invoke.Settings(bucket=bucket))
    invoke._client.cache_clear()
    assert form['url'].rstrip('/') in csp(filled(HEADER, region))['connect-src']


def test_cloudfront():
    c = R['Distribution']['Properties']['DistributionConfig']
    page, api = c['Origins']
    assert page['OriginAccessControlId'] == {'Fn::GetAtt': ['PageAccess', 'Id']} and R['PageAccess']['Properties']['OriginAccessControlConfig']['SigningBehavior'] == 'always'
    assert api['CustomOriginConfig']['OriginSSLProtocols'] == ['TLSv1.2'] and api['CustomOriginConfig']['OriginProtocolPolicy'] == 'https-only'
    own = c['ViewerCertificate']['Fn::If']
    assert own[0] == 'HasDomain' and own[1]['MinimumProtocolVersion'] == 'TLSv1.2_2021' # CloudFront's own certificate cannot be told
    to_api = c['CacheBehaviors']
    assert [(b['PathPattern'], b['TargetOriginId'], b['CachePolicyId'], b['ViewerProtocolPolicy']) for b in to_api] == [('/api/*', 'api', '4135ea2d-6df8-44a3-9df3-4b5a84be39ad', 'https-only')]
    assert c['DefaultCacheBehavior']['AllowedMethods'] == ['GET', 'HEAD'] and c['DefaultCacheBehavior']['ViewerProtocolPolicy'] == 'redirect-to-https'
    assert all(b['ResponseHeadersPolicyId'] == {'Ref': 'PageHeaders'} for b in (*to_api, c['DefaultCacheBehavior']))


def test_the_api_has_the_routes_of_the_page():
    routes = of_type('AWS::ApiGatewayV2::Route').values()
    assert {r['Properties']['RouteKey'] for r in routes} == {'POST /api/count', 'POST /api/uploads', 'GET /api/health'}
    assert all(r['Properties']['AuthorizationType'] == {'Fn::If': ['WantsSignature', 'AWS_IAM', 'NONE']} for r in routes)
    assert set(R['Stage']['Properties']['DefaultRouteSettings']) == {'ThrottlingRateLimit', 'ThrottlingBurstLimit'}


# ---------------------------------------------------------------- what exists when

def holds(condition, values):
    "Evaluate a condition"
    (name, x), = condition.items()
    if name == 'Fn::Equals':
        a, b = (str(values[v['Ref']]) if isinstance(v, dict) else str(v) for v in x)
        return a == b
    if name == 'Fn::Not': return not holds(x[0], values)
    if name == 'Fn::And': return all(holds(c, values) for c in x)
    if name == 'Fn::Or': return any(holds(c, values) for c in x)
    return holds(T['Conditions'][x], values)


def chosen(value, values):
    "A value with every Fn::If decided"
    if isinstance(value, dict) and 'Fn::If' in value:
        name, yes, no = value['Fn::If']
        return chosen(yes if holds(T['Conditions'][name], values) else no, values)
    if isinstance(value, dict): return {k: v for k, v in ((k, chosen(v, values)) for k, v in value.items()) if v != {'Ref': 'AWS::NoValue'}}
    if isinstance(value, list): return [v for v in (chosen(v, values) for v in value) if v != {'Ref': 'AWS::NoValue'}]
    return value


def refused_by_rules(values):
    return [a['AssertDescription'] for rule in T['Rules'].values() if holds(rule['RuleCondition'], values) for a in rule['Assertions'] if not holds(a['Assert'], values)]


def resources(values): return {n: chosen(r, values) for n, r in R.items() if 'Condition' not in r or holds(T['Conditions'][r['Condition']], values)}


IMAGE = '123456789012.dkr.ecr.us-east-1.amazonaws.com/bin-counter@sha256:' + 'a'*64
CONFIGS = [StackConfig(answer=a, endpoint=e, image=IMAGE if e != 'none' else '', capture=c if e == 'realtime' else 0, access=w, key_sha256='b'*64 if w == 'key' else '', page=w != 'iam' and p)
           for a, e, c, w, p in itertools.product(('local', 'endpoint'), ('none', 'realtime', 'serverless'), (0, 20), ('open', 'key', 'iam'), (True, False)) if a == 'local' or e != 'none']
KEYS = dict(local='lambda/local-0a.zip', endpoint='lambda/endpoint-0b.zip', model='model/0c/model.tar.gz')


def values_of(config):
    from bin_counter.stack import needed
    keys = {n: k for n, k in KEYS.items() if n in needed(config)}
    return {n: p.get('Default') for n, p in T['Parameters'].items()} | stack_parameters(config, 'bins-code', keys)


@pytest.mark.parametrize('config', CONFIGS, ids=lambda c: f'{c.answer}-{c.endpoint}-{c.capture}-{c.access}-{c.page}')
def test_a_plan_fits_the_template(config):
    "Parameters as they may be, no rule against them, no reference to what is not there, and an endpoint only where it is wanted"
    values = values_of(config)
    for name, v in values.items():
        p = T['Parameters'][name] # an unknown one fails here
        assert 'AllowedValues' not in p or v in map(str, p['AllowedValues']) or v in p['AllowedValues'], name
        assert 'AllowedPattern' not in p or re.fullmatch(p['AllowedPattern'], v), name
        assert p.get('MinValue', float('-inf')) <= (float(v) if p['Type'] == 'Number' else 0) <= p.get('MaxValue', float('inf')) or p['Type'] != 'Number', name
    assert refused_by_rules(values) == []
    there = resources(values)
    pointed = {x for r in there.values() for d in walk(r) if isinstance(d, dict) for x in ([d['Ref']] if isinstance(d.get('Ref'), str) else [d['Fn::GetAtt'][0]] if 'Fn::GetAtt' in d else [])}
    assert not {x for x in pointed if x in R} - set(there)
    kinds = {r['Type'] for r in there.values()}
    assert ('AWS::SageMaker::Endpoint' in kinds) == (config.endpoint != 'none') and ('AWS::CloudFront::Distribution' in kinds) == config.page
    asked = {'local': 'LocalFunction', 'endpoint': 'EndpointFunction'}[config.answer]
    assert there['Integration']['Properties']['IntegrationUri'] == {'Fn::GetAtt': [asked, 'Arn']}
    assert there['Uploads']['Properties']['NotificationConfiguration']['LambdaConfigurations'][0]['Function'] == {'Fn::GetAtt': [asked, 'Arn']}
    assert there['CountRoute']['Properties']['AuthorizationType'] == ('AWS_IAM' if config.access == 'iam' else 'NONE')


def test_a_serverless_endpoint_is_asked_for_nothing_that_it_cannot():
    real, less = (resources(values_of(StackConfig(endpoint=e, image=IMAGE, capture=c))) for e, c in (('realtime', 20), ('serverless', 0)))
    v = less['EndpointConfig']['Properties']['ProductionVariants'][0]
    assert 'ServerlessConfig' in v and 'InstanceType' not in v and 'InitialInstanceCount' not in v
    assert 'DataCaptureConfig' not in less['EndpointConfig']['Properties'] and 'EnableNetworkIsolation' not in less['Model']['Properties']
    assert real['Model']['Properties']['EnableNetworkIsolation'] is True and real['EndpointConfig']['Properties']['DataCaptureConfig']['EnableCapture'] is True


@pytest.mark.parametrize('changes, why', [
    (dict(Answer='endpoint'), 'EndpointKind'), (dict(LocalCodeKey=''), 'LocalCodeKey'), (dict(EndpointKind='realtime'), 'EndpointCodeKey'), (dict(Access='key'), 'KeySha256'),
    (dict(Access='iam'), 'Page=no'), (dict(Domain='bins.example.com'), 'CertificateArn')])
def test_template_and_plan_refuse_the_same(changes, why):
    assert why in ' '.join(refused_by_rules(values_of(StackConfig()) | changes))
    said = dict(answer=changes.get('Answer', 'local'), endpoint=changes.get('EndpointKind', 'none'), access=changes.get('Access', 'open'), domain=changes.get('Domain', ''))
    if 'LocalCodeKey' not in changes:
        with pytest.raises(ConfigError): StackConfig(**said)


def test_bucket_names_fit_in_the_longest_region():
    "63 characters are what S3 allows"
    longest = StackConfig(stack='a'*26)
    for n in ('uploads', 'page', 'code'): assert len(f'{longest.stack}-{n}-123456789012-ap-southeast-1') <= 63
    with pytest.raises(ConfigError): StackConfig(stack='a'*27)
