"The plans' own requests against moto as it is, which knows nothing of our emulator: names, required parameters, and that what is made can be described."
import os

import pytest

moto = pytest.importorskip('moto', reason="the plans are sent to moto: pip install 'bin_counter[aws]'")
import boto3
from botocore import xform_name
from botocore.exceptions import ClientError

from bin_counter.cloud import check_requests, fill, unknown
from bin_counter.endpoints import autoscaling_plan, endpoint_plan
from bin_counter.pipeline import pipeline_plan, trigger_plan
from bin_counter.plans import Input, Machines, Output, Project, processing_plan, training_plan, transform_plan, tuning_plan

P = Project('bins', 'us-east-1', '123456789012', 'arn:aws:iam::123456789012:role/bins', 'bins')
DATA, TEST, MODEL = P.uri('data', '0'*16), P.uri('test', '0'*16), P.uri('packages', '0'*16, 'model.tar.gz')
PLANS = dict(
    training=lambda: training_plan(P, DATA, dict(epochs=2), Machines('ml.m5.large', 2, spot=True)),
    tuning=lambda: tuning_plan(P, DATA, {}, dict(lr='1e-4..1e-2', batch_size='16|32')),
    processing=lambda: processing_plan(P, 'evaluate', ['python', '-m', 'bin_counter.pipeline'], inputs=[Input('data', DATA, sharded=True)], outputs=[Output('out', P.uri('out'))]),
    transform=lambda: transform_plan(P, 'bins', P.uri('photos'), P.uri('counts')),
    realtime=lambda: endpoint_plan(P, MODEL, capture=10), serverless=lambda: endpoint_plan(P, MODEL, kind='serverless'), later=lambda: endpoint_plan(P, MODEL, kind='async'),
    scaling=lambda: autoscaling_plan(P), pipeline=lambda: pipeline_plan(P, DATA, TEST), calendar=lambda: trigger_plan(P, schedule='rate(7 days)', new_data=False, approvals=False))
LOCAL = ('PutObject', 'CreateFunction') # need a file, which a plan only names


@pytest.fixture
def stock(monkeypatch):
    for k in [k for k in os.environ if k.startswith('AWS_ENDPOINT')]: monkeypatch.delenv(k)
    for k in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.setenv(k, 'moto')
    monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    with moto.mock_aws(): yield


@pytest.mark.parametrize('name', PLANS)
def test_stock_moto_takes_the_plan(name, stock):
    plan, sent = PLANS[name](), []
    assert check_requests(plan) == sum(bool(s.service) for s in plan.steps)
    for s in plan.steps:
        request = fill(s.request, dict(account=P.account, role=P.role, now='20261121-230000', code='0'*16))
        if not s.service or s.operation in LOCAL: continue
        assert not unknown(request), (s.operation, unknown(request))
        getattr(boto3.client(s.service), xform_name(s.operation))(**request)
        sent.append(s.operation)
    assert sent and any(o.startswith(('Create', 'Register', 'Put')) for o in sent)


def test_moto_is_no_yes_man(stock):
    "A configuration whose model was never made is refused, so the test above can fail"
    sm, step = boto3.client('sagemaker'), next(s for s in PLANS['realtime']().steps if s.operation == 'CreateEndpointConfig')
    with pytest.raises(ClientError, match='Could not find model'): sm.create_endpoint_config(**step.request)
