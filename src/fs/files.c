/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tree: which files there are.  Their inodes follow this order, so new ones go to the end. */
#include "files.h"

const struct dmfs_file *const dmfs_root_files[] = {
	&dmfs_control_file, &dmfs_targets_file, &dmfs_version_file, &dmfs_log_file,
	&dmfs_events_file,  &dmfs_concise_file, &dmfs_devices_file, NULL,
};

const struct dmfs_file *const dmfs_device_files[] = {
	&dmfs_image_file, &dmfs_table_file, &dmfs_inactive_file, &dmfs_suspend_file, &dmfs_status_file,
	&dmfs_error_file, &dmfs_info_file,  &dmfs_deps_file,     &dmfs_dev_file,     &dmfs_uuid_file,
	&dmfs_readonly_file, &dmfs_message_file, &dmfs_events_file, NULL,
};
