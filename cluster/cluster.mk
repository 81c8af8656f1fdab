# The stages on one machine, on Ray or on SLURM; docs/cluster.md. Included by the Makefile.
DATASET ?= nuscenes
ROOT    ?=
CLUSTER ?= local
NODES   ?= 1
GPUS    ?= 0
PARTITION ?=
ADDRESS ?=
WORKDIR ?= .
ARGS    ?=
SUBMIT_ARGS ?=

CLUSTER_STAMP := $(VENV)/.installed-cluster
PYTHON_IN_VENV := $(CURDIR)/$(BIN)/python
RAY    := --executor ray $(if $(ADDRESS),--address $(ADDRESS))
SUBMIT := $(OLIVINE) submit --nodes $(NODES) --gpus $(GPUS) $(if $(PARTITION),--partition $(PARTITION)) $(SUBMIT_ARGS) --
DATA_ARGS := --dataset $(DATASET) $(if $(ROOT),--root $(ROOT)) $(ARGS)
RUN_ARGS  := --shards data/pairs/$(DATASET) $(ARGS)

# Several processes on this machine, or just one.
TORCHRUN := $(if $(filter-out 0 1,$(GPUS)),$(PYTHON_IN_VENV) -m torch.distributed.run --standalone --nproc-per-node=$(GPUS) -m olivine.cli,$(OLIVINE))

labelgen_local    = $(OLIVINE) labelgen $(DATA_ARGS) --workers $(GPUS)
labelgen_ray      = $(OLIVINE) labelgen $(DATA_ARGS) $(RAY)
labelgen_slurm    = $(SUBMIT) labelgen $(DATA_ARGS)
build-pairs_local = $(OLIVINE) build-pairs $(DATA_ARGS)
build-pairs_ray   = $(OLIVINE) build-pairs $(DATA_ARGS) $(RAY)
build-pairs_slurm = $(SUBMIT) build-pairs $(DATA_ARGS)
# Without torchrun a run takes every GPU that its batch divides over, also where one is asked for.
pretrain_local    = $(TORCHRUN) pretrain $(if $(filter 1,$(GPUS)),--set run.devices=1) $(RUN_ARGS)
pretrain_ray      = $(OLIVINE) launch --nodes $(NODES) --gpus $(GPUS) $(if $(ADDRESS),--address $(ADDRESS)) -- pretrain $(RUN_ARGS)
pretrain_slurm    = $(SUBMIT) pretrain $(RUN_ARGS)

STAGES := labelgen build-pairs pretrain
.PHONY: $(STAGES) status
$(STAGES): setup $(if $(filter ray,$(CLUSTER)),$(CLUSTER_STAMP))
	@case "$(CLUSTER)" in local|ray|slurm) ;; *) echo "CLUSTER=$(CLUSTER)? local, ray or slurm" >&2; exit 2;; esac
	cd $(WORKDIR) && $($@_$(CLUSTER))

status: setup
	cd $(WORKDIR) && $(OLIVINE) status

$(CLUSTER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[cluster]'
	touch $(CLUSTER_STAMP)
