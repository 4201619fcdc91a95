"""TPUs of GKE: a JobSet with one job a slice and one pod a host, applied by kubectl; or the same by XPK."""

import json
import math

from mdlm_jax.config import ConfigError
from mdlm_jax.planning import slices, topologies

from .. import _cli
from ._check import Place
from ._recipe import Action, at_least, check_command, check_name, environment, shell_line

TOGETHER = False
FLAGS = (
    _cli.Flag("name", "NAME", "of the job. Required."),
    _cli.Flag("topology", "NAME", "of a slice, as launch.plan takes it, as in v5p-512 or v5e:16x16. Required."),
    _cli.Flag("image", "IMAGE", "the container, with this package in it. Required."),
    _cli.Flag("num_slices", "N", "slices of that size; 1 unless given", int),
    _cli.Flag("max_restarts", "K", "how often the job may be started again; 10 unless given", int),
    _cli.Flag("grace", "SECONDS", "that a pod has to save when it must go; 120 unless given", int),
    _cli.Flag("service_account", "NAME", "of Kubernetes, where the bucket needs one"),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
    _cli.Flag("xpk", "CLUSTER", "start it by xpk on that cluster, and not by kubectl"),
    _cli.Flag("zone", "ZONE", "of --xpk, as in us-east5-a"),
    _cli.Flag("tpu_type", "TYPE", "of --xpk, as in v5litepod-256; unless given, what the cloud calls --topology"),
)
ACCELERATORS = {"v4": "tpu-v4-podslice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice",
                "v6e": "tpu-v6e-slice", "tpu7x": "tpu7x"}
_CHIPS_OF_A_HOST = 4

_MISTAKE = 2  # exit status of a command that is wrong and will be so again: `_cli.run`

_JOBSET = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {restarts}
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: {slices}
      template:
        spec:
          parallelism: {hosts}
          completions: {hosts}
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [{mistake}]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: {grace}
{account}              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {accelerator}
                cloud.google.com/gke-tpu-topology: {layout}
              containers:
                - name: train
                  image: {image}
                  command: {command}
                  env: {variables}
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: {chips}
"""


def actions(flags: dict, command: list[str]) -> list[Action]:
    """kubectl, which reads the JobSet from its standard input; or xpk."""
    name = check_name("name", _cli.require(flags, "name", "llada", "the name of the job"))
    topology = _topology(flags)
    image = _cli.require(flags, "image", "gcr.io/PROJECT/mdlm_jax", "the container to run")
    check_command(command)
    command, variables = [*command, "--distributed=auto"], environment(flags.get("env", ""))
    restarts = at_least(flags, "max_restarts", 10, 0)
    if "xpk" in flags:
        return [_xpk(flags, name, image, topology, restarts, shell_line(command, variables))]
    for flag in ("zone", "tpu_type"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: of --xpk; add it, or leave it out")
    chips = math.prod(topology.shape)
    account = flags.get("service_account")
    text = _JOBSET.format(
        name=name, restarts=restarts, mistake=_MISTAKE, slices=topology.slices, hosts=_hosts(topology),
        grace=at_least(flags, "grace", 120), accelerator=ACCELERATORS[topology.generation],
        layout=json.dumps("x".join(map(str, topology.shape))), chips=min(chips, _CHIPS_OF_A_HOST),
        image=json.dumps(image), command=json.dumps(command),
        variables=json.dumps([{"name": key, "value": value} for key, value in variables.items()]),
        account=f"              serviceAccountName: {json.dumps(account)}\n" if account else "",
    )
    return [Action(("kubectl", "apply", "-f", "-"), text)]


def place(flags: dict) -> Place:
    """One host a pod, and no folder in common: the JobSet mounts none."""
    topology = _topology(flags)
    return Place(topology.slices * _hosts(topology), topology, tpu=True, mounted=False)


def _hosts(topology: topologies.Topology) -> int:
    return -(-math.prod(topology.shape) // _CHIPS_OF_A_HOST)


def _topology(flags: dict) -> topologies.Topology:
    given = _cli.require(flags, "topology", "v5e:16x16", "the size of a slice")
    found = topologies.parse(given, flags.get("num_slices", 1))
    chips = math.prod(found.shape)
    if found.gpu:
        raise ConfigError(f"--topology={given}: this recipe is for TPUs; use slurm or ssh for GPUs")
    if chips > _CHIPS_OF_A_HOST and chips % _CHIPS_OF_A_HOST:
        raise ConfigError(f"--topology={given}: {chips} chips must be a multiple of the {_CHIPS_OF_A_HOST} of a host")
    return found


def _xpk(flags: dict, name: str, image: str, topology: topologies.Topology, restarts: int, line: str) -> Action:
    for flag in ("grace", "service_account"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: of a JobSet by kubectl; leave it or --xpk out")
    zone = _cli.require(flags, "zone", "us-east5-a", "where the cluster of --xpk stands")
    kind = flags.get("tpu_type") or slices.cloud_name(topology.generation, topology.shape)
    if not kind:
        raise ConfigError(f"--tpu_type is missing: the cloud has no name of its own for {topology.name}; say what xpk "
                          "calls it, as in --tpu_type=v5litepod-256")
    return Action(("xpk", "workload", "create", f"--cluster={flags['xpk']}", f"--zone={zone}", f"--workload={name}",
                   f"--tpu-type={kind}", f"--num-slices={topology.slices}", f"--docker-image={image}",
                   f"--max-restarts={restarts}", f"--command={line}"))
