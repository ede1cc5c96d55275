# vsock-relay. `make help` lists the targets; all output goes to build/.
VERSION := 0.1.0
B ?= build
V ?= 0
PREFIX ?= /usr/local
DESTDIR ?=

CC ?= gcc
CLANG ?= clang
BPFTOOL ?= $(firstword $(wildcard /usr/sbin/bpftool) bpftool)
PKG_CONFIG ?= pkg-config
ARCH := $(shell $(CC) -dumpmachine | sed 's/-.*//;s/x86_64/x86/;s/aarch64/arm64/')
MULTIARCH := $(shell $(CC) -print-multiarch)
# SYSROOT: headers and libraries of another machine (see the target arm64).
SYSROOT ?=

ifeq ($(V),0)
msg = @printf '  %-8s %s\n' '$(1)' '$(2)';
MAKEFLAGS += --no-print-directory
Q := @
else
msg =
Q :=
endif

.DEFAULT_GOAL := all
.SECONDARY:
.DELETE_ON_ERROR:

WARN := -Wall -Wextra -Wshadow -Wvla -Werror
DEPS := libbpf libsystemd libprotobuf-c yaml-0.1 libxxhash libmicrohttpd libcap libseccomp libnghttp2 \
	libzstd openssl libcares jansson
CPPFLAGS := -D_GNU_SOURCE -DVSR_VERSION='"$(VERSION)"' -Iinclude -Iuser -I$(B)/gen
BASE_CFLAGS := -std=gnu17 -g -O2 $(WARN) -fno-omit-frame-pointer
HARDEN_CFLAGS := -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection -fPIE \
		 $(if $(filter x86,$(ARCH)),-fcf-protection) \
		 $(if $(filter arm64,$(ARCH)),-mbranch-protection=standard)
HARDEN_LDFLAGS := -pie -Wl,-z,relro,-z,now -Wl,--as-needed
LDLIBS = $(shell $(PKG_CONFIG) --libs $(DEPS)) -pthread

# SAN=1: ASan and UBSan instead of the hardening flags (they do not go together). SAN=thread: TSan.
# (-Wno-tsan: the fence of user/ingest_bpf.c stands against the kernel, which TSan does not see.)
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all
ifdef SAN
SAN_FLAGS := $(if $(filter thread,$(SAN)),-fsanitize=thread -Wno-tsan,$(ASAN_FLAGS))
CFLAGS := $(BASE_CFLAGS) -O1 $(SAN_FLAGS) -pthread
LDFLAGS := $(SAN_FLAGS)
else
CFLAGS := $(BASE_CFLAGS) $(HARDEN_CFLAGS) -pthread
LDFLAGS := $(HARDEN_LDFLAGS)
endif

# CRASH=1: a daemon that can be killed at labelled points (user/crash_point.h), for tests alone.
ifdef CRASH
CPPFLAGS += -DVSR_CRASH_POINTS
endif

# COV=1: count what the tests run (see the target coverage). The sandbox must know where to.
ifdef COV
CPPFLAGS += -DVSR_COVERAGE='"$(abspath $(B))"'
CFLAGS += --coverage -O0 -U_FORTIFY_SOURCE -fprofile-update=atomic
LDFLAGS += --coverage
endif

# ---- sources: one file for one noun; a new file needs no change here -------------------------
PROTOS := $(patsubst include/%,%,$(shell find include -name '*.proto' | sort))
PROTO_OBJS := $(PROTOS:%.proto=$(B)/obj/gen/%.pb-c.o)
PROTO_HDRS := $(PROTOS:%.proto=$(B)/gen/%.pb-c.h)
BPF_SRCS := $(wildcard bpf/*.bpf.c)
SKELS := $(BPF_SRCS:bpf/%.bpf.c=$(B)/gen/%.skel.h)

# Files of user/ that hold a main(); everything else there is the library.
MAIN_SRCS := user/relayd.c
LIB_SRCS := $(filter-out $(MAIN_SRCS),$(wildcard user/*.c))
LIB_OBJS := $(LIB_SRCS:%.c=$(B)/obj/%.o) $(PROTO_OBJS)
LIB := $(B)/libvsr.a
AGENT_SRCS := $(wildcard user/agent/*.c)
AGENT_MAIN := user/agent/main.c
AGENT_OBJS := $(AGENT_SRCS:%.c=$(B)/obj/%.o)
CTL_SRCS := $(wildcard user/ctl/*.c)
CTL_MAIN := user/ctl/main.c
CTL_OBJS := $(CTL_SRCS:%.c=$(B)/obj/%.o)

UNIT_SRCS := $(wildcard tests/test_*.c tests/agent/test_*.c tests/ctl/test_*.c)
UNIT_BINS := $(UNIT_SRCS:tests/%.c=$(B)/tests/%)
PRELOADS := tests/vm/leak.c
TOOL_SRCS := $(filter-out $(PRELOADS),$(wildcard tests/vm/*.c)) $(wildcard tests/bench/*.c)
MODEL := $(B)/tests/model/explore
TOOL_BINS := $(TOOL_SRCS:tests/%.c=$(B)/tests/%) $(PRELOADS:tests/%.c=$(B)/tests/%.so)
FUZZ_SRCS := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BINS := $(FUZZ_SRCS:tests/fuzz/%.c=$(B)/fuzz/%)

PROGRAMS := $(if $(wildcard $(MAIN_SRCS)),$(B)/vsock-relayd) \
	    $(if $(wildcard $(AGENT_MAIN)),$(B)/vsock-agent) \
	    $(if $(wildcard $(CTL_MAIN)),$(B)/vsock-relayctl)

# Man pages; scripts/man takes from programs and docs/settings.md what these say already.
MAN := $(B)/man/.made

all: $(PROGRAMS) $(MAN)

$(MAN): scripts/man docs/settings.md $(wildcard docs/man/*.rst) $(PROGRAMS)
	$(call msg,MAN,docs/man)
	$(Q)scripts/man $(B)
	@touch $@

# ---- generated ---------------------------------------------------------------------------------
$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h: include/%.proto
	$(call msg,PROTOC,$<)
	@mkdir -p $(B)/gen
	$(Q)protoc-c -Iinclude --c_out=$(B)/gen $<

$(B)/bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.bpf.h) $(wildcard include/*.h) $(wildcard vmlinux/*.h)
	$(call msg,BPF,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) -g -O2 -mcpu=v3 -target bpf -D__TARGET_ARCH_$(ARCH) $(WARN) \
		-Iinclude -Ivmlinux -Ibpf -idirafter $(SYSROOT)/usr/include/$(MULTIARCH) -c $< -o $@.tmp
	$(Q)$(BPFTOOL) gen object $@ $@.tmp
	@rm -f $@.tmp

$(B)/gen/%.skel.h: $(B)/bpf/%.bpf.o
	$(call msg,SKEL,$<)
	@mkdir -p $(@D)
	$(Q)$(BPFTOOL) gen skeleton $< name $*_bpf > $@

# ---- objects -----------------------------------------------------------------------------------
$(B)/obj/gen/%.o: $(B)/gen/%.c
	$(call msg,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(B)/obj/%.o: %.c | $(PROTO_HDRS) $(SKELS)
	$(call msg,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(LIB): $(LIB_OBJS)
	$(call msg,AR,$@)
	@rm -f $@
	$(Q)ar rcs $@ $^

$(B)/vsock-relayd: $(B)/obj/user/relayd.o $(LIB)
	$(call msg,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

$(B)/vsock-agent: $(AGENT_OBJS) $(LIB)
	$(call msg,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(shell $(PKG_CONFIG) --libs libprotobuf-c libxxhash) -o $@

$(B)/vsock-relayctl: $(CTL_OBJS) $(LIB)
	$(call msg,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

# The agent goes into small guests: one file without libraries.
$(B)/vsock-agent-static: $(AGENT_OBJS) $(LIB)
	$(call msg,LINK,$@)
	$(Q)$(CC) $(filter-out -fPIE,$(CFLAGS)) -static $^ -lprotobuf-c -lxxhash -o $@

# ---- tests -------------------------------------------------------------------------------------
$(B)/tests/agent/test_%: $(B)/obj/tests/agent/test_%.o $(filter-out $(B)/obj/$(AGENT_MAIN:.c=.o),$(AGENT_OBJS)) $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -lcmocka -o $@

$(B)/tests/ctl/test_%: $(B)/obj/tests/ctl/test_%.o $(filter-out $(B)/obj/$(CTL_MAIN:.c=.o),$(CTL_OBJS)) $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -lcmocka -o $@

$(B)/tests/test_%: $(B)/obj/tests/test_%.o $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -lcmocka -o $@

# Tools that run inside test VMs or beside benches: programs of one file.
$(B)/tests/vm/%: $(B)/obj/tests/vm/%.o $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

# What tests put into a relay by LD_PRELOAD.
$(B)/tests/%.so: tests/%.c
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(BASE_CFLAGS) -fPIC -shared $< -o $@

$(B)/tests/bench/%: $(B)/obj/tests/bench/%.o $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

# What programs are run with whose calls fail: no program of ours, and not checked for coverage.
FAULTS := $(B)/tests/lib/faults.so
$(FAULTS): tests/lib/faults.c tests/lib/faults.list
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu17 -g -O2 $(WARN) -fno-builtin -fPIC -shared $< -o $@

$(MODEL): $(B)/obj/tests/model/explore.o $(B)/obj/tests/model/model.o $(LIB)
	$(call msg,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

# libFuzzer is clang's; the library is compiled once more with its coverage, for all fuzzers.
FUZZ_CFLAGS = $(CPPFLAGS) $(BASE_CFLAGS) -O1 -fno-sanitize-recover=all -pthread
FUZZ_LIB := $(B)/fuzz/libvsr.a
$(B)/fuzz/obj/%.o: %.c | $(PROTO_HDRS) $(SKELS)
	$(call msg,FUZZCC,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link,address,undefined -MMD -MP -c $< -o $@

$(B)/fuzz/obj/gen/%.o: $(B)/gen/%.c
	$(call msg,FUZZCC,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link,address,undefined -MMD -MP -c $< -o $@

$(FUZZ_LIB): $(LIB_SRCS:%.c=$(B)/fuzz/obj/%.o) $(PROTOS:%.proto=$(B)/fuzz/obj/gen/%.pb-c.o)
	$(call msg,AR,$@)
	@rm -f $@
	$(Q)ar rcs $@ $^

$(B)/fuzz/%: $(B)/fuzz/obj/tests/fuzz/%.o $(FUZZ_LIB)
	$(call msg,LINK,$@)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer,address,undefined $^ $(LDLIBS) -o $@

unit-bins: $(UNIT_BINS)
tools: $(TOOL_BINS) $(FAULTS)
fuzz-bins: $(FUZZ_BINS)

# ---- what a developer calls --------------------------------------------------------------------
# Sub-makes build with all processors, unless this one was told otherwise.
SUBMAKE = +$(Q)$(MAKE) $(if $(findstring j,$(filter-out --%,$(MAKEFLAGS))),,-j$(shell nproc))

help:
	@sed -n 's/^#: //p' $(firstword $(MAKEFILE_LIST))

#: make              build the programs into build/
#: make run          build, then run the daemon here in the foreground, with a hybrid socket
run: all
	$(Q)scripts/run.sh $(B)

#: make demo         the relay's main job on this machine's packages, in a VM, in a minute
demo:
	+$(Q)scripts/demo $(B)

#: make check        all tests that fit into 15 minutes; installs what they need
check: deps
	$(SUBMAKE) check-build
	$(Q)scripts/fetch-kernel 6.12 >/dev/null
	$(Q)tests/run --build $(B) check

#: make check-unit   unit tests alone: seconds, no root
check-unit:
	$(SUBMAKE) unit-bins
	$(Q)tests/run --build $(B) unit

#: make check-asan   unit and host tests under ASan and UBSan
check-asan: deps
	$(SUBMAKE) san-build
	$(Q)tests/run --build $(B) $(filter %-asan,$(SUITES))

#: make check-tsan   under TSan: unit tests of what has threads, and the daemon
check-tsan: deps tsan-build
	$(Q)tests/run --build $(B) $(filter %-tsan,$(SUITES))

#: make check-long   what takes longer: other kernels, valgrind, an installation from nothing
check-long: deps
	$(SUBMAKE) check-build tsan-build
	$(Q)tests/run --build $(B) check-long

#: make check-host   the daemon over hybrid sockets
check-host: deps
	$(SUBMAKE) all
	$(Q)tests/run --build $(B) host

#: make check-vm     the daemon in a VM: vsock loopback and fake guests, BPF attached
check-vm: deps
	$(SUBMAKE) all tools
	$(Q)tests/run --build $(B) vm

#: make check-guest  a real guest in a VM: its kernel sends through virtio-vsock
check-guest: deps
	$(SUBMAKE) all tools $(B)/vsock-agent-static
	$(Q)tests/run --build $(B) guest

#: make check-matrix the daemon on each Debian kernel that it is made for, as a table; SERIAL=1: one VM at a time
check-matrix: deps
	$(SUBMAKE) all tools
	$(Q)tests/matrix $(B) $(if $(SERIAL),--serial)

#: make arm64        all programs, BPF objects and unit tests for arm64, into build/arm64
arm64:
	@scripts/deps build arm64
	$(Q)scripts/arm64-sysroot >/dev/null
	$(SUBMAKE) B=$(B)/arm64 $(ARM64) $(B)/arm64/vsock-relayd $(B)/arm64/vsock-relayctl \
		$(B)/arm64/vsock-agent unit-bins

ARM64_SYSROOT := $(abspath $(or $(VSR_CACHE),build/cache))/sysroot-arm64
ARM64 := CC='aarch64-linux-gnu-gcc --sysroot=$(ARM64_SYSROOT)' SYSROOT=$(ARM64_SYSROOT) \
	PKG_CONFIG='env PKG_CONFIG_LIBDIR=$(ARM64_SYSROOT)/usr/lib/aarch64-linux-gnu/pkgconfig:$(ARM64_SYSROOT)/usr/share/pkgconfig \
	PKG_CONFIG_SYSROOT_DIR=$(ARM64_SYSROOT) pkg-config'

#: make check-crash  the crash matrix: SIGKILL at labelled points, ROUNDS times each (20)
ROUNDS ?= 20
check-crash: deps crash-build
	$(Q)VSR_BUILD=$(B) tests/host/crash.py --rounds $(ROUNDS)

#: make soak         SOAK seconds (1200) of all that may happen to a node, in a VM with 200 guests
SOAK ?= 1200
soak: deps
	$(SUBMAKE) all tools
	$(Q)B=$(B) SCRIPT=soak.py MEMORY=4096 tests/vm/suite.sh 6.12 $$(($(SOAK) * 2 + 600)) \
		--seconds $(SOAK)

#: make bench        what a report costs, beside its floor, as a table and JSON; BENCH=full: all of it
bench: deps
	$(SUBMAKE) all tools
	$(Q)/usr/bin/python3 tests/bench/run.py --build $(B) $(if $(filter full,$(BENCH)),--full)

#: make fuzz         all fuzzers, TIME seconds each (60)
TIME ?= 60
fuzz: deps
	$(SUBMAKE) fuzz-bins
	$(Q)tests/fuzz/run $(B) $(TIME)

#: make lint         cppcheck and clang-tidy over the sources
lint: deps
	$(SUBMAKE) all
	$(Q)tests/lint $(B)
	$(Q)tests/analyze $(B) --tidy

#: make analyze      gcc's -fanalyzer over the sources
analyze: deps
	$(SUBMAKE) all
	$(Q)tests/analyze $(B)

#: make coverage     branches that unit tests, host tests and VMs run: core, edges; build/cov/html
coverage: deps
	$(SUBMAKE) B=$(B)/cov COV=1 all unit-bins tools
	$(Q)tests/coverage.py $(B)/cov

#: make format       format the C files; `make check` looks whether they are
format:
	$(Q)scripts/check-format --fix

#: make install      programs, man pages, completion to DESTDIR/PREFIX (/usr/local)
install: all
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(B)/vsock-relayd $(B)/vsock-relayctl $(DESTDIR)$(PREFIX)/sbin/
	install -m 755 $(B)/vsock-agent $(DESTDIR)$(PREFIX)/bin/
	install -D -m 644 scripts/deploy/vsock-relayctl.bash-completion \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vsock-relayctl
	for page in $(B)/man/*.[1-8]; do \
		install -D -m 644 $$page \
			$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/} || exit; \
	done

#: make deb          the Debian packages vsock-relay and vsock-agent into build/
deb:
	@scripts/deps build deb
	$(SUBMAKE) all
	$(Q)scripts/deb $(B) $(VERSION)

#: make deps         the Debian packages for all of this
deps:
	@scripts/deps

#: make clean        remove build/, but for what was downloaded
clean:
	$(Q)[ ! -d $(B) ] || find $(B) -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +

# The unit tests that start threads, or test what threads share.
TSAN_TESTS := $(shell sed -n 's|^unit-tsan .*--only ||p' tests/suites.conf | tr , ' ')
SUITES := $(shell awk '!/^\#/ && NF { print $$1 }' tests/suites.conf)
san-build:
	$(SUBMAKE) B=$(B)/san SAN=1 all unit-bins $(B)/san/tests/lib/faults.so
crash-build:
	$(SUBMAKE) B=$(B)/crash CRASH=1 $(B)/crash/vsock-relayd
tsan-build:
	$(SUBMAKE) B=$(B)/tsan SAN=thread all $(TSAN_TESTS:%=$(B)/tsan/tests/test_%)
check-build: all unit-bins tools $(MODEL) fuzz-bins san-build crash-build $(B)/vsock-agent-static

-include $(shell find $(B)/obj $(B)/fuzz/obj -name '*.d' 2>/dev/null)
.PHONY: all clean unit-bins tools fuzz-bins san-build check-build help run check check-unit \
	check-asan check-tsan check-host check-crash crash-build check-vm check-guest check-matrix \
	check-long tsan-build analyze arm64 soak bench deb fuzz lint coverage format install deps demo
