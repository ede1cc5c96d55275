/* SPDX-License-Identifier: Apache-2.0 */
#include "synthetic.h"

#define PACKAGE_DB "sqlite:var/lib/rpm"
#define ARCH	   "x86_64"

/* A splitmix64 generator: small, and the same everywhere. */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static unsigned int below(uint64_t *state, unsigned int n)
{
	return next_random(state) % n;
}

static const char *pick(uint64_t *state, const char *const *words, size_t n)
{
	return words[below(state, n)];
}

static const char *const stems[] = {
	"aardvark",
	"acl",
	"audit",
	"bash",
	"binutils",
	"boost",
	"bzip2",
	"cairo",
	"chrony",
	"cockpit",
	"cups",
	"curl",
	"cyrus",
	"dbus",
	"device",
	"dnf",
	"dracut",
	"elfutils",
	"fontconfig",
	"gcc",
	"gdk",
	"glib2",
	"glibc",
	"gnome",
	"grub2",
	"gstreamer1",
	"httpd",
	"iptables",
	"java",
	"kernel",
	"keyutils",
	"krb5",
	"langpacks",
	"libX11",
	"libreoffice",
	"libvirt",
	"llvm",
	"lvm2",
	"mariadb",
	"mesa",
	"NetworkManager",
	"nodejs",
	"nss",
	"openldap",
	"openssl",
	"pam",
	"perl",
	"php",
	"pipewire",
	"podman",
	"policycoreutils",
	"postgresql",
	"python3",
	"qemu",
	"qt5",
	"rubygem",
	"samba",
	"selinux",
	"sssd",
	"systemd",
	"texlive",
	"tracker",
	"util-linux",
	"xorg",
};

static const char *const parts[] = {
	"",	"-libs",    "-devel",	"-common", "-utils",  "-tools",	 "-core",    "-data",
	"-doc", "-plugins", "-minimal", "-client", "-server", "-config", "-modules", "-filesystem",
};

static const char *const repositories[] = {
	"baseos",
	"appstream",
	"codeready-builder",
	"highavailability",
	"nfv",
	"resilientstorage",
	"rt",
	"sap-netweaver",
	"sap-solutions",
	"supplementary",
	"ansible-automation",
	"satellite-client",
	"fastdatapath",
	"openshift-serverless",
	"openstack",
	"gluster-storage",
};

static int add_repositories(struct inventory *inv)
{
	for (size_t i = 0; i < ARRAY_SIZE(repositories); i++) {
		struct repository r = {
			.name = arena_printf(inv->arena, "cpe:/o:redhat:enterprise_linux:9::%s",
					     repositories[i]),
			.key = REPOSITORY_KEY_RHEL,
			.cpe = arena_printf(inv->arena,
					    "cpe:2.3:o:redhat:enterprise_linux:9:*:%s:*:*:*:*:*:*",
					    repositories[i]),
			.uri = "",
		};
		int e;

		if (!r.name || !r.cpe)
			return -ENOMEM;
		e = inventory_add_repository(inv, &r);
		if (e < 0)
			return e;
	}
	return 0;
}

static int add_package(struct inventory *inv, size_t i, uint64_t seed)
{
	/* Each package has a generator of its own, so that it does not depend on the others. */
	uint64_t random = seed * 0xd1342543de82ef95ULL + i;
	const char *stem = pick(&random, stems, ARRAY_SIZE(stems));
	const char *part = pick(&random, parts, ARRAY_SIZE(parts));
	struct arena *a = inv->arena;
	struct package p = { .db = PACKAGE_DB };

	p.name = arena_printf(a, "%s%s-%zu", stem, part, i);
	p.version = arena_printf(a, "%u.%u.%u-%u.el9_%u", below(&random, 12), below(&random, 60),
				 below(&random, 30), 1 + below(&random, 40), below(&random, 5));
	p.arch = below(&random, 4) ? ARCH : "noarch";
	p.source = stem;
	p.source_version = p.version;
	p.repository_hint = "";
	p.module = "";
	if (below(&random, 4) != 0)
		p.repository_hint =
			arena_printf(a,
				     "hash=sha256%%3A%016lx%016lx%016lx%016lx&key=199e2f91fd431d51",
				     next_random(&random), next_random(&random),
				     next_random(&random), next_random(&random));
	if (below(&random, 12) == 0)
		p.module = arena_printf(a, "%s:%u", stem, below(&random, 30));
	if (!p.name || !p.version || !p.repository_hint || !p.module)
		return -ENOMEM;
	/* Few packages come with all of them. */
	p.n_repositories = below(&random, 1 + ARRAY_SIZE(repositories));
	p.n_repositories = 1 + below(&random, 1 + below(&random, p.n_repositories + 1));
	p.n_repositories = MIN(p.n_repositories, ARRAY_SIZE(repositories));
	return inventory_add_package(inv, &p);
}

int synthetic_fill(struct inventory *inv, size_t n, uint64_t seed)
{
	int r;

	if (n > INVENTORY_PACKAGES_MAX)
		return -E2BIG;
	inv->os = (struct osrelease){
		.id = "rhel",
		.name = "Red Hat Enterprise Linux",
		.version = "9.4 (Plow)",
		.version_id = "9.4",
		.version_codename = "",
		.pretty_name = "Red Hat Enterprise Linux 9.4 (Plow)",
		.cpe_name = "cpe:/o:redhat:enterprise_linux:9::baseos",
	};
	inv->arch = ARCH;
	inv->activation = ACTIVATION_ACTIVE;
	inv->dnf_metadata = DNF_METADATA_AVAILABLE;
	r = add_repositories(inv);
	for (size_t i = 0; i < n && r >= 0; i++)
		r = add_package(inv, i, seed);
	return r;
}
