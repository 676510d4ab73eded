"Retraining on the emulated AWS: the first model goes in, a worse one and an equal one do not, an alarm and a person have the last word."
import contextlib, io, itertools, json, os, re, subprocess, sys, threading
from dataclasses import replace

import pytest

pytest.importorskip('moto.server', reason="the emulator needs moto: pip install 'bin_counter[aws]'")

from bin_counter import promote
from bin_counter.cloud import Asker, CloudError, check_requests
from bin_counter.core import Counts, ModelCard, Preprocess, bytes_hash, read_json, write_card
from bin_counter.emulator import Emulator
from bin_counter.endpoints import Hosting, update_policy
from bin_counter.package import Package
from bin_counter.pipeline import (approve, build_promoter, execution_steps, pipeline_definition, pipeline_plan, promote_event, put_pipeline, rights, start_pipeline, stop_pipeline, trigger_plan,
                                  watch_pipeline, watch_promotion)
from bin_counter.plans import Machines, Project
from bin_counter.splits import SplitRow, write_splits
from emulated import ROLE, wait_for

SETTINGS = dict(grace=1.5, pace=.02, sync=.2, capture=.2, start=60, invoke=10)
RECIPES = dict(poor=60., good=12., equal=12., best=0.) # by how much each misreads the brightness of a photo; `equal` answers as `good` does

TRAINER = '''
import json, os, pathlib, shutil, sys, time
ml = pathlib.Path(os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml'))
hps = json.loads((ml/'input/config/hyperparameters.json').read_text())
if hps['arch'] == 'slow': time.sleep(60)
if hps['arch'] == 'fails': sys.exit('no photo could be read')
shutil.copytree(pathlib.Path(__file__).parent/hps['arch'], ml/'model', dirs_exist_ok=True)
'''


def counter(folder, off, temperature):
    "A package that counts by brightness: a photo of k items has a brightness of about 40 k"
    from onnx import TensorProto, helper, numpy_helper
    import numpy as np
    mean = np.array([40*k + off for k in range(1, 6)], np.float32)/255
    nodes = [helper.make_node('ReduceMean', ['photos', 'axes'], ['m'], keepdims=0), helper.make_node('Unsqueeze', ['m', 'one'], ['c']), helper.make_node('Sub', ['c', 'mean'], ['d']), helper.make_node('Mul', ['d', 'd'], ['q']),
             helper.make_node('Mul', ['q', 'sharp'], ['l']), helper.make_node('Softmax', ['l'], ['probs'], axis=1)]
    known = [numpy_helper.from_array(np.array(v, t), n) for n, v, t in (('axes', [1, 2, 3], np.int64), ('one', [1], np.int64), ('mean', mean, np.float32), ('sharp', [-temperature], np.float32))]
    graph = helper.make_graph(nodes, 'g', [helper.make_tensor_value_info('photos', TensorProto.FLOAT, ['n', 3, 32, 32])], [helper.make_tensor_value_info('probs', TensorProto.FLOAT, ['n', 5])], known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    model.ir_version = 9
    folder.mkdir(parents=True)
    (folder/'model.onnx').write_bytes(model.SerializeToString())
    write_card(folder/'card.json', ModelCard('resnet18', Counts(), Preprocess(32, mean=(0, 0, 0), std=(1, 1, 1)), onnx_sha256=bytes_hash((folder/'model.onnx').read_bytes())))


@pytest.fixture(scope='module')
def recipes(tmp_path_factory):
    "A trainer that leaves a ready-made package, by the name of the architecture"
    out = tmp_path_factory.mktemp('recipes')
    (out/'trainer.py').write_text(TRAINER)
    for name, off in RECIPES.items(): counter(out/name, off, 300. if name == 'equal' else 200.)
    return out


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A fixed test set of 120 grey photos in 60 groups, whose brightness says what is in them, more or less"
    import numpy as np
    from PIL import Image
    out, rng, rows = tmp_path_factory.mktemp('test'), np.random.default_rng(0), []
    (out/'data/bin-images').mkdir(parents=True)
    for i in range(120):
        label, name = 1 + i % 5, f'{i:05}'
        Image.new('RGB', (40, 40), (int(np.clip(40*label + rng.normal(0, 12), 0, 255)),)*3).save(out/f'data/bin-images/{name}.jpg')
        rows.append(SplitRow(name, label, f'g{i//2}', 'test'))
    write_splits(out/'splits/splits.csv', rows)
    return out


@pytest.fixture(scope='module')
def aws(tmp_path_factory, recipes, photos):
    with Emulator(tmp_path_factory.mktemp('aws'), settings=SETTINGS, images={'fake*': dict(train=['python', str(recipes/'trainer.py')])}) as aws:
        s3 = aws.client('s3')
        s3.create_bucket(Bucket='bins')
        for p in photos.rglob('*'):
            if p.is_file(): s3.upload_file(str(p), 'bins', f'test/0123456789abcdef/{p.relative_to(photos)}')
        for key in ('splits/splits.csv', 'data/bin-images/1.jpg'): s3.put_object(Bucket='bins', Key=f'data/0123456789abcdef/{key}', Body=b'x')
        trust = dict(Version='2012-10-17', Statement=[dict(Effect='Allow', Action='sts:AssumeRole', Principal=dict(Service=['lambda.amazonaws.com', 'sagemaker.amazonaws.com', 'events.amazonaws.com']))])
        aws.client('iam').create_role(RoleName='bins', AssumeRolePolicyDocument=json.dumps(trust))
        with aws.active(): yield aws


DATA, TEST = 's3://bins/data/0123456789abcdef', 's3://bins/test/0123456789abcdef'
slow = pytest.mark.skipif(os.environ.get('BIN_COUNTER_SLOW') != '1', reason='takes minutes: set BIN_COUNTER_SLOW=1')
NAMES = itertools.count()


class Line:
    "A project of its own with its pipeline, and what one does with it"
    def __init__(self, aws, tmp_path, **given):
        self.aws, self.said = aws, []
        self.project = Project(f'line-{next(NAMES)}', account='123456789012', role=ROLE, bucket='bins', training_image='fake:1')
        self.asker = Asker('us-east-1', say=self.said.append, poll=.1)
        aws.lambdas(**{self.project.promoter: 'bin_counter.promote:handler'})
        self.plan = pipeline_plan(self.project, DATA, TEST, dict(arch='good', epochs=1), zipped=tmp_path/'promote.zip', source='s3://bins/code/x/sourcedir.tar.gz', **given)
        put_pipeline(self.project, self.plan, self.asker)
    def start(self, recipe, beside=False, **parameters): return start_pipeline(self.project, dict(arch=recipe, **parameters), self.asker, beside)
    def run(self, recipe, **parameters): return watch_pipeline(self.project, self.start(recipe, **parameters), self.asker)
    def settle(self, config): return watch_promotion(self.project, config, self.asker)
    def sm(self): return self.aws.client('sagemaker')
    def versions(self): return self.sm().list_model_packages(ModelPackageGroupName=self.project.package_group, SortBy='CreationTime')['ModelPackageSummaryList']
    def running(self): return promote.find_running(self.sm(), self.project.endpoint)
    def call(self, package, **more): return promote.handler(promote_event(self.project, package, bake=60) | more)
    def close(self):
        with contextlib.suppress(Exception): self.sm().delete_endpoint(EndpointName=self.project.endpoint)


@pytest.fixture
def line(aws, tmp_path):
    made = []
    def make(**given):
        made.append(Line(aws, tmp_path, hosting=dict(bake=60) | given.pop('hosting', {}), **given))
        return made[-1]
    yield make
    for l in made: l.close()


@pytest.fixture
def faults(aws):
    yield aws.faults
    aws.faults(deny=None)


def test_the_first_goes_in_a_worse_and_an_equal_one_do_not_a_better_one_does(line, photos, recipes):
    "The whole chain four times: training, comparison, registry, endpoint"
    l = line()
    first = l.run('good')
    assert (first.outcome, first.status) == ('promoted', 'Succeeded'), str(first)
    assert first.evaluation['champion'] is None and first.evaluation['opponent_name'] == 'always 3' and first.evaluation['gain']['low'] > 0
    assert l.settle(first.config) == (True, f'{l.project.endpoint} answers with {first.config}')
    body = next((photos/'data/bin-images').iterdir()).read_bytes()
    ask = lambda: json.loads(l.aws.client('sagemaker-runtime').invoke_endpoint(EndpointName=l.project.endpoint, Body=body, ContentType='image/jpeg')['Body'].read())['model']['package']
    assert ask() == Package.load(recipes/'good').sha256[:12]
    for recipe, why in (('poor', 'these photos show that it is worse'), ('equal', 'these photos cannot tell the two apart')):
        run = l.run(recipe)
        assert run.outcome == 'refused' and run.status == 'Failed' and [s[0] for s in run.steps] == ['Train', 'Evaluate', 'Better', 'Refused']
        assert run.message.startswith('refused: RMSE') and run.message.count(why) == 1 and first.config.replace('config', 'model') in run.message
        report = re.search(r'report: s3://bins/(\S+)', run.message)[1]
        page = l.aws.client('s3').get_object(Bucket='bins', Key=report)['Body'].read().decode()
        assert why in page and first.evaluation['test_sha256'] == run.evaluation['test_sha256'] in page
        assert l.running()['config'] == first.config and ask() == Package.load(recipes/'good').sha256[:12] and len(l.versions()) == 1
    best = l.run('best')
    assert best.outcome == 'promoted' and best.config != first.config and l.settle(best.config)[0]
    assert ask() == Package.load(recipes/'best').sha256[:12] and l.running()['version'] == 2
    registered = l.sm().describe_model_package(ModelPackageName=l.running()['package'])
    figures = json.loads(l.aws.client('s3').get_object(Bucket='bins', Key=registered['ModelMetrics']['ModelQuality']['Statistics']['S3Uri'].removeprefix('s3://bins/'))['Body'].read())
    assert figures['regression_metrics']['rmse']['value'] == best.evaluation['candidate'] and figures['bin_counter']['champion']['model'] == first.config.replace('config', 'model')
    assert sum('Train     succeeded after' in s for s in l.said) == 4


def test_the_figure_and_the_least_gain_are_parameters(line):
    l = line()
    run = l.run('good', Figure='accuracy', LeastGain=.9)
    assert run.outcome == 'refused' and 'must be above 90.0%, it is better, but not by enough' in run.message and l.running() is None
    assert run.evaluation['figure'] == 'accuracy' and .1 < run.evaluation['gain']['low'] < run.evaluation['candidate'] <= 1


def test_a_person_approves_and_the_same_event_twice_promotes_once(line):
    l = line(approval='PendingManualApproval')
    run = l.run('good')
    assert run.outcome == 'waiting' and 'approve it, and it is promoted' in run.message and l.running() is None
    version = l.versions()[0]['ModelPackageArn']
    assert l.call(version)['status'] == 'waiting' and l.running() is None
    assert approve(l.project, 1, 'looks right', l.asker) == version
    first = l.call(version)
    assert first['status'] == 'promote' and l.call(version)['status'] == 'already' and l.settle(first['config'])[0]
    assert l.call(version)['status'] == 'already'
    config = l.sm().describe_endpoint_config(EndpointConfigName=first['config'])
    assert config['DataCaptureConfig']['DestinationS3Uri'] == 's3://bins/captured'
    approve(l.project, 1, 'a mistake', l.asker, 'Rejected')
    assert l.call(version)['status'] == 'refused'
    approve(l.project, 1, '', l.asker, 'Rejected')
    assert l.said[-1] == '1 is Rejected already'


def register(l, recipe, recipes, compared, key):
    "A version that an earlier run might have left, compared with some model"
    import tarfile
    s3, out = l.aws.client('s3'), io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as t:
        for p in sorted((recipes/recipe).iterdir()): t.add(p, p.name)
    s3.put_object(Bucket='bins', Key=f'{key}/model.tar.gz', Body=out.getvalue())
    s3.put_object(Bucket='bins', Key=f'{key}/metrics.json', Body=json.dumps(dict(bin_counter=dict(champion=compared and dict(model=compared)))).encode())
    quality = dict(ModelQuality=dict(Statistics=dict(ContentType='application/json', S3Uri=f's3://bins/{key}/metrics.json')))
    serves = dict(Containers=[dict(Image=l.project.image, ModelDataUrl=f's3://bins/{key}/model.tar.gz')], SupportedContentTypes=['image/jpeg'], SupportedResponseMIMETypes=['application/json'])
    return l.sm().create_model_package(ModelPackageGroupName=l.project.package_group, InferenceSpecification=serves, ModelMetrics=quality, ModelApprovalStatus='Approved')['ModelPackageArn']


def test_an_alarm_brings_the_old_model_back_and_a_second_event_does_not_undo_that(line, recipes):
    l = line()
    one = register(l, 'good', recipes, None, f'{l.project.name}/1')
    first = l.call(one)
    assert l.settle(first['config'])[0]
    two = register(l, 'best', recipes, l.running()['model'], f'{l.project.name}/2')
    second = l.call(two, wait='600')
    assert second['status'] == 'promote'
    with pytest.raises(promote.PromoteError, match='is Updating: promote package 3 again'): l.call(register(l, 'poor', recipes, l.running()['model'], f'{l.project.name}/3'))
    assert l.call(two)['status'] == 'already'
    alarms, name = l.aws.client('cloudwatch'), f'{l.project.endpoint}-5xx'
    alarms.set_alarm_state(AlarmName=name, StateValue='ALARM', StateReason='a test')
    good, why = l.settle(second['config'])
    assert not good and name in why and l.running()['config'] == first['config']
    alarms.set_alarm_state(AlarmName=name, StateValue='OK', StateReason='a test')
    again = l.call(two)
    assert again['status'] == 'refused' and 'went back to package 1' in again['message'] and l.running()['status'] == 'InService'
    forced = l.call(two, again='1')
    assert forced['status'] == 'promote' and l.settle(second['config'])[0]
    older = l.call(one)
    assert older['status'] == 'refused' and 'is older than package 2' in older['message'] and l.running()['config'] == second['config']


def test_a_version_that_was_compared_with_another_champion_is_refused(line, recipes):
    "Two pipelines side by side, or an approval that took a month"
    l = line()
    first = l.call(register(l, 'good', recipes, None, f'{l.project.name}/1'))
    assert l.settle(first['config'])[0]
    was = l.running()['model']
    versions = [register(l, 'best', recipes, was, f'{l.project.name}/{i}') for i in (2, 3)]
    assert l.settle(l.call(versions[0])['config'])[0]
    late = l.call(versions[1])
    assert late['status'] == 'refused' and f'compared with model {was}, and the endpoint runs package 2 now' in late['message']
    none = l.call(register(l, 'best', recipes, None, f'{l.project.name}/4'))
    assert none['status'] == 'refused' and 'never compared' in none['message'] and l.running()['version'] == 2


def test_two_events_at_once_make_one_update(line, recipes):
    l = line()
    version = register(l, 'good', recipes, None, f'{l.project.name}/1')
    said, together = [], threading.Barrier(2)
    def call():
        together.wait()
        said.append(l.call(version)['status'])
    threads = [threading.Thread(target=call) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(said) == 2 and set(said) <= {'promote', 'already'}
    assert l.settle(l.running()['config'])[0] and len(l.sm().list_endpoint_configs(NameContains=f'{l.project.name}-config')['EndpointConfigs']) == 1


def test_a_promotion_that_aws_refuses_leaves_no_mark(line, recipes, faults):
    from botocore.exceptions import ClientError
    l = line()
    version = register(l, 'good', recipes, None, f'{l.project.name}/1')
    faults(deny=['sagemaker:CreateEndpoint'])
    with pytest.raises(ClientError, match='CreateEndpoint'): l.call(version)
    assert not l.sm().list_endpoint_configs(NameContains=f'{l.project.name}-config')['EndpointConfigs']
    faults(deny=None)
    assert l.settle(l.call(version)['config'])[0]


@pytest.mark.parametrize('broken, step, said', [('right', 'Evaluate', 'you need sagemaker:DescribeEndpoint'), ('photo', 'Evaluate', '1 photos of the test set cannot be counted'), ('train', 'Train', 'no photo could be read')])
def test_whatever_breaks_nothing_is_promoted(line, aws, faults, broken, step, said):
    l, recipe = line(), 'good'
    s3, key = aws.client('s3'), 'test/0123456789abcdef/data/bin-images/00007.jpg'
    whole = s3.get_object(Bucket='bins', Key=key)['Body'].read()
    if broken == 'right': faults(deny=['sagemaker:DescribeEndpoint'])
    if broken == 'photo': s3.put_object(Bucket='bins', Key=key, Body=whole[:200])
    if broken == 'train': recipe = 'fails'
    try: run = l.run(recipe)
    finally: s3.put_object(Bucket='bins', Key=key, Body=whole)
    faults(deny=None)
    assert run.outcome == 'failed' and run.steps[-1][:2] == (step, 'Failed') and run.message.endswith('nothing was promoted')
    assert said in run.message or broken == 'train'
    assert l.versions() == [] and l.running() is None


def test_a_start_beside_another_one_has_to_be_asked_for(line):
    l = line()
    slow = l.start('slow')
    wait_for(lambda: execution_steps(l.asker, slow))
    with pytest.raises(CloudError, match='runs already .* or start another one beside it'): l.start('good')
    other = l.start('slow', beside=True)
    for arn in (other, slow): stop_pipeline(l.project, arn, l.asker)
    run = watch_pipeline(l.project, slow, l.asker)
    assert (run.outcome, run.status, run.message) == ('stopped', 'Stopped', 'nothing was promoted')
    nowhere = replace(l.project, name='nowhere')
    with pytest.raises(CloudError, match='there is no pipeline nowhere-retrain: put it there first'): start_pipeline(nowhere, {}, l.asker)


def test_new_data_start_the_pipeline_with_their_address(line):
    l = line()
    key = 'data/0123456789abcdef/splits/splits.csv'
    assert promote.handler(dict(start=l.project.pipeline, bucket='bins', key='data/0123456789abcdef/data/bin-images/1.jpg'))['status'] == 'ignored'
    said = promote.handler(dict(start=l.project.pipeline, bucket='bins', key=key))
    values = {p['Name']: p['Value'] for p in l.sm().list_pipeline_parameters_for_execution(PipelineExecutionArn=said['execution'])['PipelineParameters']}
    assert values['Data'] == DATA
    stop_pipeline(l.project, said['execution'], l.asker)


def test_what_is_there_is_updated(line, aws, tmp_path):
    l, events = line(), aws.client('events')
    for _ in range(2): put_pipeline(l.project, trigger_plan(l.project, l.plan), l.asker)
    rules = {r['Name'].removeprefix(f'{l.project.pipeline}-'): r for r in events.list_rules(NamePrefix=l.project.pipeline)['Rules']}
    assert set(rules) == {'calendar', 'data', 'approved'} and rules['calendar']['ScheduleExpression'] == 'rate(7 days)'
    target = events.list_targets_by_rule(Rule=rules['approved']['Name'])['Targets'][0]
    told = json.loads(target['InputTransformer']['InputTemplate'].replace('<package>', 'arn:x'))
    assert target['Arn'].endswith(f':function:{l.project.promoter}') and told == promote_event(l.project, 'arn:x')
    before = l.sm().describe_pipeline(PipelineName=l.project.pipeline)
    put_pipeline(l.project, pipeline_plan(l.project, DATA, TEST, dict(arch='best', epochs=1), zipped=tmp_path/'promote.zip', source='s3://bins/code/x/sourcedir.tar.gz', least=.25), l.asker)
    after = l.sm().describe_pipeline(PipelineName=l.project.pipeline)
    assert before['PipelineArn'] == after['PipelineArn'] and dict(Name='LeastGain', Type='Float', DefaultValue=.25) in json.loads(after['PipelineDefinition'])['Parameters']
    assert l.said.count('    it is there, and is updated') == 2


@pytest.mark.parametrize('there', [{}, dict(EventBridgeConfiguration={})])
def test_a_bucket_keeps_its_notifications(there, monkeypatch):
    "moto forgets the part about EventBridge, so AWS's answer is played"
    kept, sent = dict(TopicConfigurations=[dict(TopicArn='arn:t', Events=['s3:ObjectCreated:*'])]), []
    def ask(self, service, operation, **request):
        if operation == 'PutBucketNotificationConfiguration': sent.append(request['NotificationConfiguration'])
        return dict(Account='123456789012') if service == 'sts' else dict(kept, **there, ResponseMetadata={}) if operation.startswith('Get') else {}
    monkeypatch.setattr(Asker, 'ask', ask)
    put_pipeline(Project(role=ROLE), trigger_plan(Project(role=ROLE), schedule='', approvals=False), Asker('us-east-1', say=lambda line: None))
    assert sent == ([] if there else [dict(kept, EventBridgeConfiguration={})])


@slow
def test_real_trainings_go_the_same_way(aws, tmp_path, bins, split):
    "AWS's toolkit trains, our container compares: once with nothing to lose, then the same again, which is a tie"
    pytest.importorskip('sagemaker_training', reason="AWS's toolkit is not installed: pip install sagemaker-training sagemaker-pytorch-training")
    from bin_counter.jobs import put_source
    from bin_counter.upload import upload_split, upload_test
    project, asker = Project('real', account='123456789012', role=ROLE), Asker('us-east-1', say=print, poll=.5)
    aws.lambdas(**{project.promoter: 'bin_counter.promote:handler'})
    source = put_source(project, asker)
    data, test = upload_split(project, bins, split, asker), upload_test(project, bins, split, asker)
    hps = dict(arch='squeezenet1_1', weights='none', trained='all', size=32, epochs=1, batch_size=32)
    put_pipeline(project, pipeline_plan(project, data, test, hps, Machines('ml.m5.large', hours=.1, max_hours=1), zipped=tmp_path/'promote.zip', source=source, hosting=dict(bake=60)), asker)
    first = watch_pipeline(project, start_pipeline(project, dict(LeastGain=-10.), asker), asker)
    assert first.outcome == 'promoted' and first.evaluation['photos'] > 10 and watch_promotion(project, first.config, asker)[0]
    second = watch_pipeline(project, start_pipeline(project, {}, asker), asker)
    assert second.outcome == 'refused' and second.evaluation['champion']['config'] == first.config
    assert promote.find_running(aws.client('sagemaker'), project.endpoint)['config'] == first.config
    aws.client('sagemaker').delete_endpoint(EndpointName=project.endpoint)


# the function

def test_the_function_runs_from_its_zip_with_nothing_else(tmp_path):
    build_promoter(tmp_path/'promote.zip')
    code = ("import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); from bin_counter.promote import handler; loaded = set(sys.modules) - before\n"
            "assert handler(dict(start='p', bucket='b', key='x'))['status'] == 'ignored'\n"
            "print(sorted({m.split('.')[0] for m in loaded} - set(sys.stdlib_module_names)))")
    done = subprocess.run([sys.executable, '-I', '-c', code.replace('handler(dict', 'handler(dict'), str(tmp_path/'promote.zip')], capture_output=True, text=True)
    # -I keeps this checkout out; boto3 is imported by the handler itself, as Lambda has it
    assert done.stdout.strip() == "['bin_counter']", done.stderr


@pytest.mark.parametrize('kind', [dict(), dict(count=3), dict(kind='serverless'), dict(kind='async', count=2)])
def test_the_function_shifts_traffic_as_endpoints_do(kind):
    hosting, project = Hosting(**kind), Project()
    variant = dict(ServerlessConfig={}) if hosting.kind == 'serverless' else dict(InstanceType=hosting.instance, InitialInstanceCount=hosting.count)
    assert promote.deployment(variant, promote_event(project, '')['alarms'].split(','), 300) == update_policy(project, hosting, 300)


def test_rights_are_those_of_real_operations():
    from botocore.loaders import create_loader
    loader = create_loader()
    others = {'iam:PassRole', 'lambda:InvokeFunction', 's3:ListBucket'} # rights without an operation of that name
    for party in rights(Project()).values():
        for action in set(party['actions']) - others:
            service, operation = action.split(':')
            assert operation in loader.load_service_model(service, 'service-2')['operations'], action


# the document

def test_the_document_is_written_as_the_sdk_writes_it(tmp_path, monkeypatch):
    "Condition, failure, function and parameters, from AWS's own classes"
    monkeypatch.setenv('SAGEMAKER_USER_CONFIG_OVERRIDE', str(tmp_path/'none.yaml'))
    monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1') # the SDK's pipelines cannot be imported without a region
    pytest.importorskip('sagemaker.mlops.workflow.condition_step', reason='the SageMaker SDK is not installed')
    from sagemaker.core.workflow.conditions import ConditionGreaterThan
    from sagemaker.core.workflow.functions import JsonGet
    from sagemaker.core.workflow.parameters import ParameterFloat, ParameterString
    from sagemaker.core.workflow.properties import PropertyFile
    from sagemaker.mlops.workflow.fail_step import FailStep
    ours = pipeline_definition(Project(), DATA, TEST, dict(arch='x'))
    file = PropertyFile(name='evaluation', output_name='evaluation', path='evaluation.json')
    least = ParameterFloat(name='LeastGain', default_value=0.)
    value = lambda path: JsonGet(step_name='Evaluate', property_file=file, json_path=path)
    rule = ConditionGreaterThan(left=value('gain.low'), right=least).to_request()
    better = ours['Steps'][-1]['Arguments']
    plain = lambda x: x.expr if hasattr(x, 'expr') else {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else [plain(v) for v in x] if isinstance(x, list) else str(getattr(x, 'value', x)) if not isinstance(x, (int, float, str)) else x
    assert plain(rule) == better['Conditions'][0]
    assert plain(FailStep('Refused', error_message=value('message')).to_request()) == better['ElseSteps'][0]
    assert plain(file.expr) == ours['Steps'][1]['PropertyFiles'][0]
    parameters = {p['Name']: p for p in ours['Parameters']}
    assert plain(least.to_request()) == parameters['LeastGain'] and plain(ParameterString(name='arch', default_value='x').to_request()) == parameters['arch']
    assert plain(ParameterString(name='Approval', default_value='Approved', enum_values=['Approved', 'PendingManualApproval']).to_request()) == {**parameters['Approval'], 'EnumValues': list(parameters['Approval']['EnumValues'])}


def test_a_plan_without_account_and_role_is_checked_and_has_no_name_of_a_job():
    plan = pipeline_plan(Project(), 's3://b-ins/data/0123456789abcdef', 's3://b-ins/test/0123456789abcdef', dict(epochs=2), Machines('ml.p9.unknown'))
    assert check_requests(plan) == 7 and plan.charges == ()
    text = plan.steps[-1].request['PipelineDefinition']
    assert '${now}' not in text and 'JobName' not in text and '${role}' in text


# the comparison, in the image

def test_the_image_needs_no_training_library(photos, recipes, tmp_path):
    "Without scikit-learn, matplotlib and torch the figures are the same"
    import shutil
    out = {}
    for name, absent in (('image', ('sklearn', 'matplotlib', 'torch', 'fastai', 'scipy')), ('whole', ())):
        base = tmp_path/name
        shutil.copytree(photos, base/'processing/test')
        shutil.copytree(recipes/'good', base/'processing/model')
        code = f'import sys\nfor m in {absent!r}: sys.modules[m] = None\nfrom bin_counter.pipeline import main\nmain(["evaluate", "--base", {str(base)!r}])'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'exact accuracy' in done.stdout
        out[name] = read_json(base/'processing/evaluation/metrics.json')
    assert out['image'] == out['whole'] and out['image']['bin_counter']['scores']['the new model']['figures']['kappa']['value'] > .5


def test_the_last_word_of_a_failure_is_left_where_sagemaker_looks(photos, tmp_path):
    (tmp_path/'processing/model').mkdir(parents=True)
    (tmp_path/'processing/test').symlink_to(photos)
    done = subprocess.run([sys.executable, '-m', 'bin_counter.pipeline', 'evaluate', '--base', str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('not compared: ') and 'Traceback' not in done.stderr
    assert 'holds no card.json' in (tmp_path/'output/message').read_text() and not (tmp_path/'processing/evaluation/evaluation.json').exists()
