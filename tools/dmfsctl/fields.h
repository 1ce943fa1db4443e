/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The columns of `info -c`. */
#ifndef DMFSCTL_FIELDS_H
#define DMFSCTL_FIELDS_H

#include "report.h"

extern const struct report_type device_report_type; /* its objects are struct device */
/* A report of devices with the user's options; with columns false only for its selection and order. */
enum report_made fields_report(struct report **out, bool columns);

#endif
