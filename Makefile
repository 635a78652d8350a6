# Thin on purpose: what is done stands in scripts/ and playbooks/.

INVENTORY ?= inventories/local
PLAYBOOK = scripts/python -m ansible playbook -i $(INVENTORY)
export ANSIBLE_FORCE_COLOR ?= $(shell test -t 1 && echo 1)

.DEFAULT_GOAL := help
.PHONY: help demo demo-down site verify test check lint molecule bench bootstrap

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: bootstrap ## a local fleet, the whole site on it, a verdict
	@scripts/fleet image
	@scripts/fleet up
	@$(PLAYBOOK) playbooks/site.yml || { echo 'The site failed; see above. "make demo" goes on where it stopped.' >&2; exit 1; }
	@$(PLAYBOOK) playbooks/verify.yml -e verify_wait=40; verdict=$$?; scripts/fleet guide; exit $$verdict

demo-down: ## take the local fleet away
	@scripts/bootstrap --no-docker
	@scripts/fleet down

site: ## the site again on the standing local fleet (ARGS="--check --diff --limit lb1")
	@$(PLAYBOOK) playbooks/site.yml $(ARGS)

verify: ## prove that the standing local fleet is healthy; its page is .fleet/*/verdict/report.html
	@$(PLAYBOOK) playbooks/verify.yml $(ARGS)

test: bootstrap ## everything that must hold
	@scripts/test

check: ## lint, types and unit tests: quick, without containers
	@scripts/bootstrap --no-docker
	@scripts/test --only lint,unit

lint: ## only lint and types
	@scripts/bootstrap --no-docker
	@scripts/lint

molecule: bootstrap ## one role on fresh hosts: make molecule ROLE=redis
	@test -n "$(ROLE)" || { echo 'Say which: make molecule ROLE=redis'; exit 2; }
	@scripts/fleet image --release all
	@scripts/molecule test -s $(ROLE)

bench: bootstrap ## the measurements
	@scripts/fleet image
	@tests/bench/run $(ARGS)

bootstrap:
	@scripts/bootstrap
