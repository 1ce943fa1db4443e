# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make [all]          dmfs and its tools, in build/
#   make check          all tests; check-unit, check-integration, check-kernel, check-crash, check-fuzz: one kind
#   make crash          the crash laboratory in full
#   make check-zoned-kernel  zoned beside the kernel's, under qemu's emulation
#   make random         random operations on all targets at once, for RANDOM_SEEDS
#   make kills          a hundred deaths (KILLS) of one of multipath's two servers under load; make check has a few
#   make fuzz           the fuzzers, for FUZZ_SECONDS each (a quarter for formats)
#   make bench          the benchmark against its peers
#   make install        honours PREFIX and DESTDIR
#
# SAN=address,undefined or SAN=thread builds in build-SAN/ with sanitizers.
# WERROR=1 makes warnings errors.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
CC ?= cc
CLANG ?= clang
PKG_CONFIG ?= pkg-config
PYTHON ?= /usr/bin/python3
FUZZ_SECONDS ?= 600
RANDOM_SEEDS ?= 1 2 3 4 5 6

comma := ,
B := build$(if $(SAN),-$(subst $(comma),-,$(SAN)))$(if $(FUZZER),-fuzz)

pkgs := fuse3 glib-2.0 libgcrypt sqlite3
have = $(shell $(PKG_CONFIG) --exists $(1) && echo 1)
optional := $(foreach p,libnbd libisal libxxhash gnutls libkeyutils,$(if $(call have,$(p)),$(p)))
# what only some of the tools need
tool_optional := $(foreach p,libcryptsetup blkid,$(if $(call have,$(p)),$(p)))
# libkeyutils has no .pc file everywhere
keyutils := $(shell echo 'int main(void){return 0;}' | $(CC) -x c - -include keyutils.h -lkeyutils -o /dev/null 2>/dev/null && echo 1)

CFLAGS ?= -O2 -g
cflags := -std=gnu11 -Wall -Wextra -Wno-unused-parameter -Wstrict-prototypes -Wmissing-prototypes \
	-D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 \
	-Werror=implicit-function-declaration -fno-strict-aliasing -fno-omit-frame-pointer -pthread -Iinclude -Isrc -I. \
	$(shell $(PKG_CONFIG) --cflags $(pkgs)) \
	$(foreach p,$(optional) $(tool_optional),$(shell $(PKG_CONFIG) --cflags $(p)) -DHAVE_$(shell echo $(p) | tr a-z- A-Z_)=1) \
	$(if $(keyutils),-DHAVE_KEYUTILS=1)
libs := -Wl,--as-needed $(shell $(PKG_CONFIG) --libs glib-2.0 libgcrypt sqlite3) \
	$(foreach p,$(optional),$(shell $(PKG_CONFIG) --libs $(p))) \
	$(if $(keyutils),-lkeyutils) -lm
# at start, not at the first call: resolving a function then saves the vector registers, and what was copied last with them
ldflags := -Wl,-z,now
fuse_libs := $(shell $(PKG_CONFIG) --libs fuse3)
ifdef WERROR
cflags += -Werror
endif
ifdef SAN
cflags += -fsanitize=$(SAN) -fno-sanitize-recover=all
ldflags += -fsanitize=$(SAN)
endif
ifdef FUZZER
CC := $(CLANG)
cflags += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
ldflags += -fsanitize=address,undefined
endif

version := $(shell sed -n 's/^\#define DMFS_VERSION "\(.*\)"/\1/p' src/version.h)

# --- what is built -----------------------------------------------------------

lib_src := $(wildcard src/io/*.c src/core/*.c meta/*.c lib/*.c targets/*.c targets/*/*.c)
fs_src := $(wildcard src/fs/*.c) src/main.c
# A tool is tools/NAME.c, or tools/NAME/*.c; tools/common/*.c is linked into all.
tool_names := $(basename $(notdir $(wildcard tools/*.c))) $(filter-out common,$(notdir $(patsubst %/,%,$(wildcard tools/*/))))
# Packages a tool cannot be built without; it is left out where one is missing.
tool_pkgs_dmfs-luks := libcryptsetup
# What dmfs-luks shares with dmfs-run's library: AF_ALG sockets, for libcryptsetup, which sees the program's calls first.
tool_src_dmfs-luks := $(wildcard tools/dmfs-run/preload/alg*.c)
tool_pkgs_dmfs-verity := libcryptsetup
tool_pkgs_dmfs-open := blkid
tool_names := $(foreach t,$(tool_names),$(if $(filter-out $(tool_optional),$(tool_pkgs_$(t))),,$(t)))
unit_src := $(wildcard tests/unit/test_*.c)
unit_common := $(filter-out $(unit_src),$(wildcard tests/unit/*.c))
crash_src := $(wildcard tests/crash/*.c)
fuzz_src := $(wildcard tests/fuzz/fuzz_*.c)

obj = $(patsubst %.c,$(B)/%.o,$(1))
lib := $(B)/libdmfs.a
programs := $(B)/dmfs $(addprefix $(B)/,$(tool_names))
unit_bins := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(unit_src))
crash_bins := $(if $(crash_src),$(B)/tests/crash/crash)
fuzz_bins := $(patsubst tests/fuzz/%.c,$(B)/tests/fuzz/%,$(fuzz_src))

.PHONY: all check check-unit check-integration check-kernel check-crash check-fuzz check-zoned-kernel crash random kills fuzz fuzz-bins bench \
	install uninstall clean tests format
.SECONDARY:
all: $(programs) $(B)/libdmfs-run.so

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(cflags) $(CPPFLAGS) $(CFLAGS) $(if $(filter tests/unit/%,$<),-Itests/unit -I.) -MMD -MP -c $< -o $@

$(lib): $(call obj,$(lib_src))
	@rm -f $@
	@ar rcs $@ $^

$(B)/dmfs: $(call obj,$(fs_src)) $(lib)
	$(CC) $(cflags) $(CFLAGS) $(ldflags) $(LDFLAGS) $^ -o $@ $(fuse_libs) $(libs)

# dmfs-run's library is loaded into other programs: it is of itself alone.
preload := $(B)/libdmfs-run.so
preload_src := $(wildcard tools/dmfs-run/preload/*.c)
preload_cflags := -std=gnu11 -Wall -Wextra -Wstrict-prototypes -Wmissing-prototypes -D_GNU_SOURCE -fPIC -fvisibility=hidden \
	-fno-strict-aliasing -pthread $(if $(WERROR),-Werror)

$(B)/tools/dmfs-run/preload/%.o: tools/dmfs-run/preload/%.c
	@mkdir -p $(@D)
	$(CC) $(preload_cflags) $(CPPFLAGS) -U_FORTIFY_SOURCE $(CFLAGS) -MMD -MP -c $< -o $@

$(preload): $(call obj,$(preload_src))
	$(CC) -shared $(CFLAGS) -Wl,-z,defs -Wl,-z,now $(LDFLAGS) $^ -o $@ -ldl -pthread

define tool_rule
$(B)/$(1): $(call obj,$(wildcard tools/$(1).c tools/$(1)/*.c tools/common/*.c) $(tool_src_$(1))) $(lib)
	$$(CC) $$(cflags) $$(CFLAGS) $$(ldflags) $$(LDFLAGS) $$^ -o $$@ $$(libs) $(foreach p,$(tool_pkgs_$(1)),$(shell $(PKG_CONFIG) --libs $(p)))
endef
$(foreach t,$(tool_names),$(eval $(call tool_rule,$(t))))

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(call obj,$(unit_common)) $(lib)
	$(CC) $(cflags) $(CFLAGS) $(ldflags) $(LDFLAGS) $^ -o $@ $(libs) -lcmocka

$(B)/tests/crash/crash: $(call obj,$(crash_src)) $(lib)
	$(CC) $(cflags) $(CFLAGS) $(ldflags) $(LDFLAGS) $^ -o $@ $(libs)

$(B)/tests/fuzz/%: $(B)/tests/fuzz/%.o $(lib)
	$(CC) $(cflags) $(CFLAGS) -fsanitize=fuzzer $(ldflags) $(LDFLAGS) $^ -o $@ $(libs)

tests: $(unit_bins) $(crash_bins)

# --- tests ---------------------------------------------------------------------

check: all tests
	contrib/runtests B=$(B) FUZZ_SECONDS=40 unit integration kernel crash fuzz
check-unit check-integration check-kernel check-crash check-fuzz: all tests
	contrib/runtests B=$(B) $(@:check-%=%)
check-zoned-kernel: all
	contrib/runtests B=$(B) zoned-kernel
crash: all tests
	contrib/runtests B=$(B) crash-full
random: all
	contrib/runtests B=$(B) RANDOM_SEEDS="$(RANDOM_SEEDS)" random
KILLS ?= 100
kills: all
	MULTIPATH_KILLS=$(KILLS) DMFS_BUILD=$(abspath $(B)) $(PYTHON) -m pytest -q -k servers_die_in_turns \
		tests/integration/test_multipath.py
fuzz-bins: $(fuzz_bins)
fuzz:
	contrib/runtests B=$(B) FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz
bench: all
	$(PYTHON) tests/bench/bench.py --build $(B) $(BENCH)

# --- install ---------------------------------------------------------------------

install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(programs) $(DESTDIR)$(BINDIR)
	install -m 644 dmfs.1 $(DESTDIR)$(MANDIR)/man1
	install -d $(DESTDIR)$(PREFIX)/lib/dmfs
	install -m 644 $(preload) $(DESTDIR)$(PREFIX)/lib/dmfs
	for f in contrib/completion/*; do [ ! -e "$$f" ] || install -m 644 "$$f" $(DESTDIR)$(PREFIX)/share/bash-completion/completions; done
	for f in contrib/systemd/*; do [ ! -e "$$f" ] || install -m 644 "$$f" $(DESTDIR)$(PREFIX)/lib/systemd/system; done

uninstall:
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,$(notdir $(programs))) $(DESTDIR)$(MANDIR)/man1/dmfs.1 \
		$(DESTDIR)$(PREFIX)/lib/dmfs/libdmfs-run.so

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf build build-*

-include $(shell find $(B) -name '*.d' 2>/dev/null)
