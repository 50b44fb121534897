// Names and values of a thing, in a card.

import {
  Card,
  CardBody,
  CardHeader,
  CardTitle,
  DescriptionList,
  DescriptionListDescription,
  DescriptionListGroup,
  DescriptionListTerm,
} from '@patternfly/react-core';
import type { ReactNode } from 'react';

/** A card with a heading; tables in it go to its edges. */
export function Box({ title, actions, flush, children }: { title: string; actions?: ReactNode; flush?: boolean; children: ReactNode }) {
  return (
    <Card className={flush ? 'splice-flush' : ''}>
      <CardHeader {...(actions ? { actions: { actions } } : {})}>
        <CardTitle component="h2">{title}</CardTitle>
      </CardHeader>
      <CardBody>{children}</CardBody>
    </Card>
  );
}

export type Fact = [name: string, value: ReactNode] | false;

export function Facts({ of }: { of: Fact[] }) {
  return (
    <DescriptionList isHorizontal isCompact horizontalTermWidthModifier={{ default: '14ch', md: '18ch' }}>
      {of
        .filter((fact) => fact !== false)
        .map(([name, value]) => (
          <DescriptionListGroup key={name}>
            <DescriptionListTerm>{name}</DescriptionListTerm>
            <DescriptionListDescription>{value}</DescriptionListDescription>
          </DescriptionListGroup>
        ))}
    </DescriptionList>
  );
}

/** One figure, large, with what it is. */
export function Figure({ value, name, about }: { value: ReactNode; name: string; about?: ReactNode }) {
  return (
    <div className="splice-figure">
      <div className="splice-figure-name">{name}</div>
      <div className="splice-figure-value">{value}</div>
      {about && <div className="splice-figure-about">{about}</div>}
    </div>
  );
}

/** A part of a whole as a bar, with the words beside it that say the same. */
export function Meter({ part, whole, label, tone = 'plain' }: { part: number; whole: number; label: string; tone?: 'plain' | 'bad' }) {
  return <meter className={`splice-meter splice-meter-${tone}`} min={0} max={Math.max(whole, 1)} value={Math.min(part, whole)} aria-label={label} />;
}
