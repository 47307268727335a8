# Every word works in a .venv of its own, which it makes and keeps up to date with requirements*.txt.
# pip's own configuration decides where packages come from (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf).

.DEFAULT_GOAL := help
.PHONY: help run serve test clients ray ray-bench check lint types fix bench pocket-eval
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
BENCHES := mux_overhead scheduler_sim http_load denoising image_path step_batching pocket_edit gpu gpu_vision job_store restart http_overhead loading memory vision gateway gateway_restarts capacity
RAY_BENCHES := ray_serve
MODEL := $(or $(DEFAULT_MODEL),pocket-edit)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s%s\n", $$1, $$2}' Makefile

run: $(VENV)/.runtime ## edit the photograph of test_input.json here, through RunPod's local path; draw seven edits
	DEFAULT_MODEL=$(MODEL) $(PY) handler.py --test_input
	$(if $(filter pocket-edit,$(MODEL)),$(PY) docs/strip.py out/edits.png)

serve: $(VENV)/.runtime ## serve HTTP on port 8000 with the pocket checkpoints
	STANDALONE_MODE=1 DEFAULT_MODEL=$(MODEL) ALLOWED_MODELS=$(or $(ALLOWED_MODELS),pocket-sdxl) $(PY) handler.py

test: $(VENV)/.dev ## run the tests, in two processes; each file in one of them
	$(PY) -m pytest -n $(or $(PROCESSES),2) --dist loadfile

clients: $(VENV)/.dev $(VENV)/.clients out/clients/.made ## run other people's clients against a server here; needs node and npm
	$(PY) -m pytest -m clients tests/clients

ray: $(VENV)/.dev out/ray/.made ## run two replicas under Ray Serve here, and kill one; takes some minutes
	out/ray/bin/python -m pytest -m ray tests/deploy

ray-bench: $(VENV)/.dev out/ray/.made ## compare a fleet under Ray Serve with one process; takes some minutes
	out/ray/bin/python -m benchmarks.$(RAY_BENCHES)

check: lint types test ## everything that must hold before a commit: format, lint, types, tests

lint: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/hadolint Dockerfile

types: $(VENV)/.dev
	$(PY) -m mypy .

fix: $(VENV)/.dev ## format, mend what ruff can mend, regenerate the tables in the documents
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(PY) docs/generate.py
	$(PY) docs/models.py
	$(PY) docs/dialects.py

bench: $(VENV)/.dev ## run every benchmark; each prints a table and fails when it misses a target
	@status=0; \
	for name in $(BENCHES); do \
		echo "== benchmarks/$$name.py"; \
		$(PY) -m benchmarks.$$name || status=1; \
	done; \
	exit $$status

pocket-eval: $(VENV)/.dev ## measure the pocket checkpoint on held-out photographs; fails when it misses a bar
	$(PY) -m training.photos > /dev/null
	$(PY) -m training.evaluate

$(VENV)/.runtime: requirements.txt | $(PY)
	@echo "Installing requirements.txt into $(VENV); the first time takes some minutes."
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

out/clients/.made: requirements-clients.txt | $(PY)
	$(PY) -m venv out/clients
	out/clients/bin/python -m pip install --quiet --disable-pip-version-check -r $< pillow
	@touch $@

# It sees what is installed in $(VENV) and adds to it, so that Ray changes nothing there.
out/ray/.made: requirements-ray.txt $(VENV)/.dev
	$(PY) -m venv out/ray
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(out/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/worker.pth"
	out/ray/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The development requirements include the others, so both stamps are fresh afterwards.
$(VENV)/.dev: requirements-dev.txt requirements.txt | $(PY)
	@echo "Installing requirements-dev.txt into $(VENV); the first time takes some minutes."
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.runtime $@

$(VENV)/.clients: tests/clients/js/package.json | $(PY)
	@command -v npm > /dev/null || { echo "npm is needed; on Debian: apt-get install nodejs npm" >&2; exit 1; }
	npm install --prefix tests/clients/js --silent
	@touch $@

# A half-made environment is removed, so that the next try starts clean.
$(PY):
	@for python in $(PYTHONS); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)."; \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed; none was found under the names $(PYTHONS)." >&2; \
	echo "Install it (on Debian 12 and later: apt-get install python3 python3-venv) and run make again." >&2; \
	exit 1
