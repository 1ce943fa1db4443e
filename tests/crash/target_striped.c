/* SPDX-License-Identifier: GPL-2.0-or-later */
/* striped over three slices, one of them at an offset, used by three threads at once. */
#include "lab.h"

static int open_striped(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 960 striped 3 16 a 0 b 7 c 0", NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void use_from_thread(struct lab *lab, unsigned i, void *data)
{
	lab_random_io(lab, 60, "vol", NULL);
}

static void use_striped(struct lab *lab)
{
	lab_threads(lab, 3, use_from_thread, NULL);
}

static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 30, "vol", NULL);
}

LAB_CUSTOMER(striped) = {
	.slices = {{"a", 320}, {"b", 330}, {"c", 320}},
	.open = open_striped,
	.workload = use_striped,
	.fault_workload = use_shortly,
};
