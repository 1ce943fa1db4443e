/* SPDX-License-Identifier: GPL-2.0-or-later */
/* linear, with its two halves exchanged. */
#include "lab.h"

static int open_linear(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 512 linear low 512", "512 512 linear low 0", NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void use_linear(struct lab *lab)
{
	lab_random_io(lab, 150, "vol", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 50, "vol", NULL);
}

static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 30, "vol", NULL);
}

LAB_CUSTOMER(linear) = {
	.slices = {{"low", 1024}},
	.open = open_linear,
	.workload = use_linear,
	.fault_workload = use_shortly,
};
