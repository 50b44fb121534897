// A judgement as a label: a colour, always with a word and an icon, and why.

import { Label, Tooltip } from '@patternfly/react-core';
import DownIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon';
import GoodIcon from '@patternfly/react-icons/dist/esm/icons/check-circle-icon';
import BusyIcon from '@patternfly/react-icons/dist/esm/icons/in-progress-icon';
import QuietIcon from '@patternfly/react-icons/dist/esm/icons/minus-circle-icon';
import WarnIcon from '@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon';

import type { Tone, Verdict } from '../model/fleet';

const LOOKS: Record<Tone, { status?: 'success' | 'danger' | 'warning' | 'info'; icon: typeof GoodIcon }> = {
  good: { status: 'success', icon: GoodIcon },
  bad: { status: 'danger', icon: DownIcon },
  warn: { status: 'warning', icon: WarnIcon },
  busy: { status: 'info', icon: BusyIcon },
  quiet: { icon: QuietIcon },
};

export function VerdictLabel({ of: { tone, word, why } }: { of: Verdict }) {
  const { status, icon: Icon } = LOOKS[tone];
  const label = (
    <Label isCompact variant={tone === 'good' || tone === 'quiet' ? 'outline' : 'filled'} {...(status ? { status } : {})} icon={<Icon />}>
      {word}
    </Label>
  );
  if (!why) return label;
  return (
    <Tooltip content={why} aria="none">
      <span tabIndex={0} className="splice-why">
        {label}
        <span className="pf-v6-screen-reader">: {why}</span>
      </span>
    </Tooltip>
  );
}
